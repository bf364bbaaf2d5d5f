"""How often one caller may ask: a bucket for each token, and for each address without one.

A bucket fills evenly and holds a few seconds' worth, so that a burst passes and a flood does not.
Each process counts for itself: over N replicas a caller gets up to N times as much. Memory is
bounded: the buckets that were used last are kept, and a forgotten one begins full.

A token counts for itself once a route has found it valid; until then its requests count as its
address's. So nobody gets a fresh bucket by making up tokens.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from typing import Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import TooManyRequests
from gateway.middleware import PROBED_PATHS
from leases.ports import Clock

# About 2 MB of buckets; more callers than these are forgotten, the longest silent first.
BUCKETS_MAX = 10_000
_EXEMPT_PREFIX = "/v1/"  # Operators, who need it most when there is too much of everything else.
_IPV6_NETWORK_BITS = 64  # What one customer gets; single addresses cost nothing there.


class LimitObserver(Protocol):
    """Is told of refusals."""

    def rate_limited(self, by: str) -> None:
        """A request was refused, `by` its `token` or its `address`."""
        ...


class Buckets:
    """Token buckets by key. Units: `per_second` requests, 0 for no limit; `now` in seconds."""

    def __init__(
        self, *, per_second: float, burst_seconds: float, buckets_max: int = BUCKETS_MAX
    ) -> None:
        self._per_second = per_second
        self._room = max(1.0, per_second * burst_seconds)
        self._buckets_max = buckets_max
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._buckets

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str, now: float) -> float:
        """Take one request out of the bucket: 0, or how many seconds there is none to be had."""
        level, at = self._buckets.get(key, (self._room, now))
        wait = 0.0
        if self._per_second:
            level = min(self._room, level + max(0.0, now - at) * self._per_second)
            if level >= 1:
                level -= 1
            else:
                wait = (1 - level) / self._per_second
        self._buckets[key] = (level, now)
        self._buckets.move_to_end(key)
        while len(self._buckets) > self._buckets_max:
            self._buckets.popitem(last=False)
        return wait


class RateLimit:
    """Refuses what comes too often, before its body is read. Health and `/v1` are not counted."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        token_per_second: float,
        address_per_second: float,
        burst_seconds: float,
        clock: Clock,
        observer: LimitObserver,
    ) -> None:
        self._app = app
        self._clock, self._observer = clock, observer
        self._rates = {"token": token_per_second, "address": address_per_second}
        self._tokens = Buckets(per_second=token_per_second, burst_seconds=burst_seconds)
        self._addresses = Buckets(per_second=address_per_second, burst_seconds=burst_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_exempt(scope["path"]):
            await self._app(scope, receive, send)
            return
        told = Headers(scope=scope).get("authorization")
        token = None if told is None else hashlib.sha256(told.encode("latin-1")).hexdigest()
        now = self._clock.monotonic()
        if token is not None and token in self._tokens:
            self._check("token", self._tokens.take(token, now))
        else:
            self._check("address", self._addresses.take(address_of(scope), now))
        try:
            await self._app(scope, receive, send)
        finally:
            if token is not None and token not in self._tokens and "token_id" in scope["state"]:
                self._tokens.take(token, now)

    def _check(self, by: str, wait: float) -> None:
        if not wait:
            return
        self._observer.rate_limited(by)
        seconds = math.ceil(wait)
        raise TooManyRequests(
            f"Too many requests: this {by} may make {self._rates[by]:g} a second;"
            f" come back in {seconds} s.",
            retry_after_seconds=seconds,
        )


def address_of(scope: Scope) -> str:
    """Whose address it is: the connection's, or what a trusted proxy says; of IPv6 the network."""
    client = scope.get("client")
    if not client:
        return "none"
    try:
        address = ip_address(client[0])
    except ValueError:
        return str(client[0])[:64]
    if isinstance(address, IPv6Address):
        return str(int(address) >> (128 - _IPV6_NETWORK_BITS))
    return str(address)


def _is_exempt(path: str) -> bool:
    return path in PROBED_PATHS or path.startswith(_EXEMPT_PREFIX)

"""What every request passes, as plain ASGI: an id, a summary line, limits on bodies, errors.

Starlette's BaseHTTPMiddleware is not used: it costs a task and two queues per request.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import BodyTooSlow, MethodNotAllowed, TooLarge, answer_for
from gateway.metrics import Metrics
from gateway.slow_clients import BodyPace, ShedObserver
from gateway.wire.render import render
from leases.errors import Failure, InvalidRequest, NotFound, Unavailable
from leases.ids import new_token
from leases.ports import Clock

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z", re.ASCII)
_DRAIN_BYTES_MAX = 64 * 1024 * 1024  # A refused body is read on for so long ...
_DRAIN_SECONDS_MAX = 5.0  # ... so that the sender gets to read why.
_DRAIN_SLOW_SECONDS_MAX = 1.0  # A slow sender has little on its way.
_LENGTH_DIGITS_MAX = 18
_HUNG_UP = 499  # For the log alone: there was nobody left to answer.
PROBED_PATHS = frozenset({"/livez", "/readyz", "/metrics"})  # Asked by machines, all the time.
EVENT_STREAM = "text/event-stream"

_log = structlog.get_logger(__name__)


class RequestContext:
    """Gives each request an id, one line in the log, and an answer whatever happens.

    `routes` names the endpoints' addresses, with their parameters' names and not their values.
    """

    def __init__(
        self, app: ASGIApp, *, clock: Clock, metrics: Metrics, routes: Mapping[object, str]
    ) -> None:
        self._app = app
        self._clock = clock
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        started = self._clock.monotonic()
        exchange = _Exchange(scope, send, request_id)
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, exchange.send)
            except ClientDisconnect:
                exchange.status = exchange.status or _HUNG_UP
            except Exception as error:
                if exchange.status:
                    _log.exception("answer_cut", error=type(error).__name__)
                    raise  # The server cuts the connection: nobody takes half for the whole.
                await answer_error(error, Request(scope, receive, exchange.send))
            finally:
                seconds = self._clock.monotonic() - started
                route = self._routes.get(scope.get("endpoint"), "(none)")
                exchange.summarise(seconds)
                exchange.count(self._metrics, route=route, seconds=seconds)


class _Exchange:
    """One request and what was answered."""

    def __init__(self, scope: Scope, send: Send, request_id: str) -> None:
        self._scope, self._send = scope, send
        self._request_id = request_id
        self.status = 0
        self._is_stream = False
        self._bytes = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self._request_id
            self._is_stream = headers.get("content-type", "").startswith(EVENT_STREAM)
        elif message["type"] == "http.response.body":
            self._bytes += len(message.get("body", b""))
        await self._send(message)

    def count(self, metrics: Metrics, *, route: str, seconds: float) -> None:
        if self._is_stream:
            metrics.stream_done(route=route, answer_bytes=self._bytes)
            return
        metrics.request_done(
            method=self._scope["method"],
            route=route,
            status=self.status or 500,
            seconds=seconds,
            answer_bytes=self._bytes,
        )

    def summarise(self, seconds: float) -> None:
        path = self._scope["path"]
        say = _log.debug if path in PROBED_PATHS and self.status == 200 else _log.info
        say(
            "request",
            method=self._scope["method"],
            path=path,  # Without the query: it may hold a signature.
            status=self.status,
            duration_ms=round(seconds * 1000, 1),
            answer_bytes=self._bytes,
        )


def _request_id(headers: Mapping[str, str]) -> str:
    """The caller's own id if it is sane, so that its log and ours can be laid side by side."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.match(given) else new_token(8)


def declared_bytes(headers: Mapping[str, str]) -> int:
    """How long the body says that it is; 0 where it does not say, or nothing that can be read."""
    declared = headers.get("content-length", "")
    if not declared.isdecimal():
        return 0
    # Python refuses to read numbers of thousands of digits; these are all too large.
    return int(declared) if len(declared) <= _LENGTH_DIGITS_MAX else 2**63


class BodyLimit:
    """Bounds what bodies may take: bytes each, bytes together, and time."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        bytes_max: int,
        bytes_together_max: int,
        seconds_max: float,
        slow_seconds: float,
        slow_bytes_per_second: int,
        observer: ShedObserver,
    ) -> None:
        self._app = app
        self._bytes_max = bytes_max
        self._bytes_together_max = bytes_together_max
        self._seconds_max = seconds_max
        self._slow_seconds = slow_seconds
        self._slow_bytes_per_second = slow_bytes_per_second
        self._observer = observer
        self._bytes_together = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            paced = self._paced(receive)
            # The one PUT there is (routes/blobs.py) holds no body in memory, and bounds its bytes.
            if scope["method"] == "PUT":
                await self._app(scope, paced, send)
            else:
                await self._bounded(scope, paced, send)
        except BodyTooSlow:
            self._observer.client_shed("body")
            raise

    def _paced(self, receive: Receive) -> Receive:
        pace = BodyPace(seconds=self._slow_seconds, bytes_per_second=self._slow_bytes_per_second)
        complete = False

        async def paced() -> Message:
            nonlocal complete
            if complete:  # Waiting for the caller to hang up is no slow body.
                return await receive()
            message = await pace.next(receive)
            complete = not message.get("more_body", False)
            return message

        return paced

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        if declared_bytes(Headers(scope=scope)) > self._bytes_max:
            raise self._too_large()
        held = 0
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._seconds_max
        complete = False

        async def limited() -> Message:
            nonlocal held, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise BodyTooSlow from error
            size = len(message.get("body", b""))
            held += size
            self._bytes_together += size
            if held > self._bytes_max:
                raise self._too_large()
            if self._bytes_together > self._bytes_together_max:
                raise Unavailable("Too many large requests at once; try again shortly.")
            complete = not message.get("more_body", False)
            scope["state"]["body_complete"] = complete
            return message

        try:
            await self._app(scope, limited, send)
        finally:
            self._bytes_together -= held

    def _too_large(self) -> TooLarge:
        return TooLarge(f"The body is over {self._bytes_max:,} bytes.")


async def answer_error(error: Exception, request: Request) -> None:
    """Answer an error in the one shape, and say in the log what an operator should know."""
    answer = answer_for(translated(error), request_id=request.state.request_id)
    if answer.status >= 500:
        _log_failure(error, answer.status)
    response = render(
        request, answer.body, default="json", status=answer.status, headers=answer.headers
    )
    if answer.status not in (408, 413) or getattr(request.state, "body_complete", False):
        await response(request.scope, request.receive, request._send)  # noqa: SLF001  Starlette hides it
        return
    await _answer_and_drain(response.status_code, response.raw_headers, response.body, request)


async def _answer_and_drain(
    status: int, headers: list[tuple[bytes, bytes]], body: Any, request: Request
) -> None:
    """Answer at once, then read a little on: a reset connection would swallow the answer."""
    send = request._send  # noqa: SLF001  Starlette hides it
    headers = [*headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(body), "more_body": True})
    left = _DRAIN_BYTES_MAX
    seconds = _DRAIN_SLOW_SECONDS_MAX if status == 408 else _DRAIN_SECONDS_MAX
    try:
        async with asyncio.timeout(seconds):
            while left > 0:
                message = await request.receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _log_failure(error: Exception, status: int) -> None:
    if isinstance(error, Failure) and status == 503:
        _log.warning("request_unavailable", code=error.code, reason=str(error))
    else:
        _log.error("request_failed", error=type(error).__name__, exc_info=error)


def translated(error: Exception) -> Exception:
    """Starlette's own errors as ours."""
    if not isinstance(error, HTTPException):
        return error
    if error.status_code == 404:
        return NotFound("There is nothing at this address.")
    if error.status_code == 405:
        # Starlette joins a set, whose order changes from process to process.
        allowed = sorted((error.headers or {}).get("Allow", "").split(", "))
        return MethodNotAllowed(allow=", ".join(allowed))
    return InvalidRequest(error.detail)

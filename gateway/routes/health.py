"""`/livez`: the process answers. `/readyz`: what it needs answers, too.

Ready is 200 also when something is degraded: taking a replica out of service would help nobody
when the store is slow or a clock is off. It is 503 while the database is away or not migrated, and
from SIGTERM on.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.service import Service, revision_of
from gateway.storage.availability import Need
from gateway.wire.render import render
from leases.circuit import CircuitState
from leases.errors import BlobMissing, Failure
from leases.owner import OWNER_KEY
from schema import revision

_OUT = "the store does not answer; new packs and pushed objects are refused until it does"
_TAKES_NOTHING = "the store takes no blobs; until it does, packs are only answered inline"
CHECK_SECONDS_MAX = 3.0  # Probes give up after a few seconds; an answer must come before.


def health_routes(service: Service) -> list[Route]:
    """The routes that probes and people ask; open to all, and without any detail worth hiding."""

    async def livez(request: Request) -> Response:
        return render(request, {"status": "ok"}, default="json")

    async def readyz(request: Request) -> Response:
        checks = {
            "database": await _database(service),
            "store": await _store(service),
            "reaping": _reaping(service),
            "clock": _clock(service),
        }
        broken = checks["database"]["status"] != "ok"
        degraded = any(check["status"] != "ok" for check in checks.values())
        told = "unavailable" if broken else "degraded" if degraded else "ok"
        if service.stopping:
            told = "stopping"
        answer = {"status": told, "checks": checks}
        status = 503 if broken or service.stopping else 200
        return render(request, answer, default="json", status=status)

    return [
        Route("/livez", livez, methods=["GET"], name="livez"),
        Route("/readyz", readyz, methods=["GET"], name="readyz"),
    ]


async def _database(service: Service) -> dict[str, Any]:
    try:
        async with asyncio.timeout(CHECK_SECONDS_MAX):
            found = await revision_of(service.database)
    except (Failure, TimeoutError):
        return {"status": "unavailable", "detail": "the database does not answer"}
    if found != revision.HEAD:
        return {"status": "unavailable", "detail": "the database is not migrated"}
    return {"status": "ok", "revision": found}


async def _store(service: Service) -> dict[str, Any]:
    out = {need.value: "open" for need in Need if service.availability.is_out(need)}
    if out:  # It is being probed: asking once more would only make this answer late.
        detail = _OUT if Need.READING in out else _TAKES_NOTHING
        return {"status": "degraded", "detail": detail, "circuits": out}
    try:
        async with asyncio.timeout(CHECK_SECONDS_MAX):
            await service.store.get(OWNER_KEY)
    except BlobMissing:
        pass  # It answered; the mark is written when the first reaping is allowed.
    except Exception:  # noqa: BLE001  whatever a store raises, it did not answer
        service.availability.suspect_all()
        return {"status": "degraded", "detail": "the store does not answer"}
    return {"status": "ok"}


def _reaping(service: Service) -> dict[str, Any]:
    owner, circuit = service.engine.owner, service.engine.reaper.circuit
    healthy = owner.may_reap() and not circuit.is_open
    told = {"status": "ok" if healthy else "degraded", "state": str(owner.state)}
    if circuit.state is not CircuitState.CLOSED:
        told["circuit"] = circuit.state.value
    return told


def _clock(service: Service) -> dict[str, Any]:
    skew = service.engine.database_clock.skew_seconds
    close = abs(skew) <= service.settings.lease.clock_skew_max_seconds
    return {"status": "ok" if close else "degraded", "skew_seconds": round(skew, 3)}

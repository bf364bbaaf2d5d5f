"""`/metrics`, for Prometheus.

Open, or behind a token of its own (`MPACK_METRICS_TOKEN`): the API's tokens stand in the database,
and this has to answer while that is away.
"""

from __future__ import annotations

import hmac

from starlette.datastructures import Secret
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import Unauthorized
from gateway.metrics import TEXT_FORMAT
from gateway.service import Service


def metrics_routes(service: Service) -> list[Route]:
    """The route that scrapes come to."""

    async def metrics(request: Request) -> Response:
        check_token(request, service.settings.metrics_token)
        await service.stats_cache.refresh()
        return Response(
            service.metrics.text(), media_type=TEXT_FORMAT, headers={"Cache-Control": "no-store"}
        )

    return [Route("/metrics", metrics, methods=["GET"], name="metrics")]


def check_token(request: Request, wanted: Secret | None) -> None:
    """Let everybody in where no token is set. Errors: Unauthorized."""
    if wanted is None:
        return
    given = request.headers.get("authorization", "")
    if not hmac.compare_digest(given.encode(), f"Bearer {wanted}".encode()):
        raise Unauthorized

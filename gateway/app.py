"""The HTTP application: settings in, a Starlette app out; its lifespan owns every task."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import Route

from gateway.middleware import BodyLimit, RequestContext
from gateway.rate_limit import RateLimit
from gateway.routes.access import Access
from gateway.routes.blobs import blob_routes
from gateway.routes.fetch import fetch_routes
from gateway.routes.health import health_routes
from gateway.routes.leases import lease_routes
from gateway.routes.metrics import metrics_routes
from gateway.routes.names import names_routes
from gateway.routes.objects import object_routes
from gateway.routes.presign import presign_routes
from gateway.routes.push import push_routes
from gateway.routes.refs import refs_routes
from gateway.service import Service
from gateway.settings import Settings
from gateway.storage.local import LocalStore
from leases.errors import Failure


def create_app(settings: Settings) -> Starlette:
    """The gateway as an ASGI app; nothing is opened before its lifespan begins."""
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        try:
            async with service:
                yield
        except Failure as failure:
            service.failure = failure  # The server tells a traceback; `serve` wants the words.
            raise

    routes = routes_of(service)
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[
            Middleware(
                RequestContext,
                clock=service.clock,
                metrics=service.metrics,
                routes={route.endpoint: route.path for route in routes},
            ),
            *_rate_limit(service),
            Middleware(
                BodyLimit,
                bytes_max=max(settings.wire.body_bytes_max, settings.wire.ids_body_bytes_max),
                bytes_together_max=settings.bodies_bytes_max,
                seconds_max=settings.body_timeout_seconds,
                slow_seconds=settings.slow_seconds,
                slow_bytes_per_second=settings.slow_bytes_per_second,
                observer=service.metrics,
            ),
        ],
        # Every error is answered by RequestContext, in one shape.
        exception_handlers={HTTPException: _pass_on},
    )
    app.router.redirect_slashes = False  # The client follows no redirect.
    app.state.service = service
    return app


def routes_of(service: Service) -> list[Route]:
    """Every address there is. The fixed ones come first: `/v1/leases` is no repo."""
    access = Access(
        service.tokens,
        service.repos,
        create_on_push=service.settings.create_repo_on_push,
        visibility=service.settings.new_repo_visibility,
    )
    return [
        *health_routes(service),
        *metrics_routes(service),
        *lease_routes(access, service),
        *_own_blobs(service),
        *object_routes(access, service),
        *refs_routes(access, service.database, service.settings.wire),
        *fetch_routes(access, service),
        *presign_routes(access, service),
        *push_routes(access, service),
        *names_routes(access, service),
    ]


def _rate_limit(service: Service) -> list[Middleware]:
    settings = service.settings
    if not (settings.token_requests_per_second or settings.address_requests_per_second):
        return []
    limit = Middleware(
        RateLimit,
        token_per_second=settings.token_requests_per_second,
        address_per_second=settings.address_requests_per_second,
        burst_seconds=settings.requests_burst_seconds,
        clock=service.clock,
        observer=service.metrics,
    )
    return [limit]


def _own_blobs(service: Service) -> list[Route]:
    if not isinstance(service.store, LocalStore):
        return []  # The URLs of other stores lead to them.
    lease = service.settings.lease
    return blob_routes(
        service.store,
        upload_bytes_max=service.settings.wire.upload_bytes_max,
        # What was begun with the URL's last breath has ended before the lease does.
        upload_seconds_max=max(1.0, lease.upload_grace_seconds - lease.upload_margin_seconds),
    )


async def _pass_on(_request: Request, error: Exception) -> NoReturn:
    raise error

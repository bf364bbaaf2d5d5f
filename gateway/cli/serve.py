"""`mpack-gateway serve`: the service."""

from __future__ import annotations

import gc
import socket
from typing import TYPE_CHECKING

import click

from gateway.cli.exits import Exit, run, told
from gateway.cli.options import database_url_option, settings_of

if TYPE_CHECKING:
    from gateway.draining import DrainingServer
    from gateway.settings import Settings


@click.command()
@click.option("--host", help="Listen here instead of MPACK_HOST.")
@click.option("--port", help="Listen on this port instead of MPACK_PORT.")
@click.option(
    "--forwarded-allow-ips", metavar="LIST",
    help="Believe X-Forwarded-* headers from these instead of MPACK_FORWARDED_ALLOW_IPS.",
)  # fmt: skip
@database_url_option
def serve(
    *,
    host: str | None,
    port: str | None,
    forwarded_allow_ips: str | None,
    database_url: str | None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that are under way are finished first."""
    from gateway.logs import configure

    settings = settings_of(database_url, host=host, port=port)
    configure(log_format=settings.log_format, level=settings.log_level)
    run(_check(settings))
    server = make_server(settings, forwarded_allow_ips=forwarded_allow_ips)
    settle_heap()
    try:
        server.run()
    except SystemExit:
        if server.failure is not None:
            with told():
                raise server.failure from None
        # The server's own exit code says neither of the two: that the service did not start, or
        # that somebody else has the address. Its log says which, and why.
        taken = not server.lifespan.should_exit
        raise SystemExit(Exit.TRY_LATER if taken else Exit.FAILED) from None
    if not server.started:
        raise SystemExit(Exit.FAILED)


def settle_heap() -> None:
    """Leave what is there by now, code for the most part, out of every later collection.

    It lives as long as the process. Going through it stops every request for 60 to 90 ms, at a time
    that nobody chooses, and frees nothing.
    """
    gc.collect()
    gc.freeze()


async def _check(settings: Settings) -> None:
    """Say in one sentence what would otherwise be a traceback from the lifespan."""
    from gateway.cli.opened import opened_database

    async with opened_database(settings):
        pass


def make_server(settings: Settings, *, forwarded_allow_ips: str | None = None) -> DrainingServer:
    """A server for these settings, not yet running; one process, one event loop."""
    import uvicorn

    from gateway.app import create_app
    from gateway.draining import DrainingServer
    from gateway.slow_clients import shedding_protocol

    app = create_app(settings)
    forwarded_allow_ips = forwarded_allow_ips or settings.forwarded_allow_ips
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=shedding_protocol(
            slow_seconds=settings.slow_seconds,
            slow_bytes_per_second=settings.slow_bytes_per_second,
            observer=app.state.service.metrics,
        ),
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=forwarded_allow_ips is not None,
        forwarded_allow_ips=forwarded_allow_ips,
        timeout_keep_alive=5,
        # An open stream must not keep SIGTERM waiting for ever.
        timeout_graceful_shutdown=settings.shutdown_timeout_seconds,
    )
    return DrainingServer(config, service=app.state.service)


def listening_socket(host: str, port: int = 0) -> socket.socket:
    """A bound socket; with port 0 the system chooses one, which is then known before serving."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    return listening

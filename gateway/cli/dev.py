"""`mpack-gateway dev`: the gateway with nothing to configure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.cli.exits import told

if TYPE_CHECKING:
    from gateway.dev import Running


@click.command()
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Keep everything here instead of in this account's own folder.",
)  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, help="Listen here.")
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=8080, show_default=True,
    help="Listen on this port; 0: any that is free.",
)  # fmt: skip
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info",
    show_default=True, help="How much to say on stderr.",
)  # fmt: skip
def dev(*, data: Path | None, host: str, port: int, log_level: str) -> None:
    """Serve with a PostgreSQL and a store of its own, until Ctrl-C; nothing to configure."""
    from gateway.dev import default_folder, serve
    from gateway.logs import configure

    configure(log_format="console", level=log_level)
    with told():
        serve(data or default_folder(), host=host, port=port, announce=_announce)


def _announce(running: Running) -> None:
    from gateway.cli.search_path import search_path_lines

    moved = running.data_folder.parent != running.folder / "postgres"
    lines = [
        f"mpack-gateway serves {running.url}",
        "",
        f"  everything is in  {running.folder}",
        *([f"  the database in   {running.data_folder}"] if moved else []),
        f"  admin token       {running.admin_token}",
        "",
        "Try, in another terminal:",
        f"  curl {running.url}/readyz",
        f"  curl -H 'Authorization: Bearer {running.admin_token}' \\",
        f"    {running.url}/v1/leases",
        f"  set -a; . {running.env_file}; set +a",
        *(f"  {line}" for line in search_path_lines()),
        "  mpack-gateway lease list",
        "  mpack-gateway audit verify",
        "",
        "Ctrl-C ends it and leaves nothing running.",
    ]
    click.echo("\n".join(lines))

"""`mpack-gateway healthcheck`: is the gateway beside this command serving? For containers."""

from __future__ import annotations

from typing import Any, TypeGuard

import click

from gateway.cli.exits import Exit
from gateway.cli.options import json_option, settings_of
from gateway.cli.output import print_json, print_pairs

_ANSWER_BYTES_MAX = 65_536


@click.command()
@click.option("--url", metavar="URL", help="Ask this one instead of MPACK_HOST and MPACK_PORT.")
@click.option("--live", is_flag=True, help="Only whether the process answers, not its database.")
@click.option(
    "--timeout", type=click.FloatRange(min=0.1), default=5.0, show_default=True, metavar="SECONDS",
    help="Wait so long.",
)  # fmt: skip
@json_option
def healthcheck(*, url: str | None, live: bool, timeout: float, as_json: bool) -> None:
    """Ask /readyz; exit code 75 when it does not answer, or says that it cannot serve."""
    base = url.rstrip("/") if url else _own_address()
    status, answer = _ask(base + ("/livez" if live else "/readyz"), timeout)
    if as_json:
        print_json(answer)
    else:
        checks = answer.get("checks", {})
        print_pairs(
            {"status": answer["status"]} | {name: _in_words(one) for name, one in checks.items()}
        )
    if status != 200:
        raise SystemExit(Exit.TRY_LATER)


def _in_words(check: dict[str, Any]) -> str:
    status, detail = str(check["status"]), check.get("detail") or check.get("state")
    return status if status == "ok" or detail is None else f"{status}: {detail}"


def _own_address() -> str:
    from gateway.settings import address

    settings = settings_of()
    return address(settings.host, settings.port)


def _ask(url: str, timeout: float) -> tuple[int, dict[str, Any]]:
    """The status and the answer; 0 where there is none."""
    import urllib.error
    import urllib.request
    from http.client import HTTPException

    if not url.startswith(("http://", "https://")):
        raise click.BadParameter("a URL begins with http:// or https://", param_hint="--url")
    # Whatever proxy the environment names, this gateway is not behind it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout) as answer:
            return answer.status, _told(answer.read(_ANSWER_BYTES_MAX))
    except urllib.error.HTTPError as refused:
        try:
            return refused.code, _told(refused.read(_ANSWER_BYTES_MAX))
        except ValueError:
            return refused.code, {"status": "unavailable"}
    except (OSError, HTTPException, ValueError) as error:
        click.echo(f"{url} does not answer as a gateway does ({type(error).__name__}).", err=True)
        return 0, {"status": "no answer"}


def _told(answer: bytes) -> dict[str, Any]:
    """What a gateway says. Errors: ValueError for what something else may say on this port."""
    import json

    told = json.loads(answer)
    if not _has_status(told) or not isinstance(checks := told.get("checks", {}), dict):
        raise ValueError("no gateway's answer")
    if not all(map(_has_status, checks.values())):
        raise ValueError("no gateway's checks")
    return told


def _has_status(told: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(told, dict) and "status" in told

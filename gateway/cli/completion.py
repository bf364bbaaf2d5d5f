"""`mpack-gateway completion`: what a shell needs to complete our verbs and options."""

from __future__ import annotations

import click

from gateway.cli.options import json_option
from gateway.cli.output import print_json

_PROGRAM = "mpack-gateway"
_VARIABLE = "_MPACK_GATEWAY_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
def completion(shell: str, *, as_json: bool) -> None:
    """Print a script; for bash: eval "$(mpack-gateway completion bash)"."""
    from click.shell_completion import get_completion_class

    from gateway.cli import main

    found = get_completion_class(shell)
    assert found is not None
    # Not `source()`: that runs the shell to ask its version, and the reader may be another one.
    template = found.source_template
    made = found(main, {}, _PROGRAM, _VARIABLE)
    script = template % made.source_vars()
    if as_json:
        print_json({"shell": shell, "script": script})
    else:
        click.echo(script)

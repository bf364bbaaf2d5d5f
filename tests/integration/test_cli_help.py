"""Help is there at once, for every verb, and says what the verb takes."""

from __future__ import annotations

import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from gateway.cli import main

HEAVY = {
    *("aiobotocore", "alembic", "asyncio", "asyncpg", "msgpack", "msgspec", "rich", "sqlalchemy"),
    *("starlette", "structlog", "uvicorn", "zstandard"),
}


def verbs(group: click.Group = main, *path: str) -> dict[tuple[str, ...], click.Command]:
    """Every verb and every group, by its words."""
    found: dict[tuple[str, ...], click.Command] = {path: group}
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            if isinstance(command, click.Group):
                found |= verbs(command, *path, name)
            else:
                found[(*path, name)] = command
    return found


VERBS = verbs()
# They talk to people, or serve until they are stopped.
WITHOUT_JSON = {"serve", "dev", "demo"}


def test_no_help_imports_what_takes_long() -> None:
    """Measured, each is below 100 ms; any of these packages would double that."""
    code = (
        "import sys; from gateway.cli import main\n"
        f"for words in {[list(words) for words in VERBS]!r}:\n"
        "    try: main([*words, '--help'])\n"
        "    except SystemExit as end: assert not end.code, words\n"
        f"    heavy = {HEAVY!r} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_names_every_verb() -> None:
    told = CliRunner().invoke(main, ["--help"]).stdout
    for words in VERBS:
        if len(words) == 1:
            assert re.search(rf"^  {words[0]} ", told, re.MULTILINE), words


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_each_verb_tells_what_it_takes(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*words, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.stdout
    assert VERBS[words].help or words == ()


@pytest.mark.parametrize("words", [words for words in VERBS if words], ids=" ".join)
def test_each_verb_that_answers_takes_json(words: tuple[str, ...]) -> None:
    command = VERBS[words]
    if isinstance(command, click.Group) or words[0] in WITHOUT_JSON:
        return
    assert "--json" in [name for one in command.params for name in one.opts]


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_an_unknown_option_is_wrong_usage(words: tuple[str, ...]) -> None:
    assert CliRunner().invoke(main, [*words, "--nonsense"]).exit_code == 2

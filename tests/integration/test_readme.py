"""The snippets of README.md and docs/reference.md do what stands around them."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

import schema.migrate
from gateway.cli import main
from leases.database import Database
from tests.databases import driver_url
from tests.factories import make_history
from tests.git_repositories import GitRepository
from tests.integration.gateways import LiveGateway
from tests.integration.pushing import gate_on

TOP = Path(__file__).resolve().parents[2]
README = (TOP / "README.md").read_text()
REFERENCE = (TOP / "docs/reference.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


async def run(snippet: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run a snippet as if it stood in an async function; answers its names."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    running = eval(compile(snippet, "snippet", "exec", flags=flags), names)
    if running is not None:
        await running
    return names


async def test_the_embedded_gateway_answers_a_pack(engine: AsyncEngine, database: Database) -> None:
    (snippet,) = blocks(README, "python")
    assert "await schema.migrate.upgrade(engine)" in README
    await schema.migrate.upgrade(engine)  # Once more changes nothing.
    gate, history = gate_on(database), make_history(1)
    repo = await gate.repo()
    await gate.push_objects(repo, history)
    await gate.push(repo, history.bundle())
    async with AsyncSession(engine) as session:
        names = {"engine": engine, "storage": gate.store, "session": session}
        names |= {"repo_id": repo.repo_id, "head": history.head.commit_id}
        answer = (await run(snippet, names))["answer"]
    assert answer["mpack_url"].startswith("https://")
    assert answer["counts"]["commits"] == len(history.commits)


def test_the_commands_prepare_a_database_of_ones_own(database_url: str) -> None:
    """All but `serve` and `dev`, which other tests start as processes."""
    (console,) = [block for block in blocks(README, "console") if "db upgrade" in block]
    lines = [shlex.split(line.removeprefix("$ ")) for line in console.splitlines()]
    exported = dict(pair.split("=", 1) for pair in lines[0][1:])
    assert lines[0][0] == "export"
    assert exported.keys() == {"MPACK_DATABASE_URL", "MPACK_PUBLIC_URL"}
    environ = exported | {"MPACK_DATABASE_URL": driver_url(database_url)}
    assert lines[-1] == ["mpack-gateway", "serve"]
    for program, *words in lines[1:-1]:
        assert program == "mpack-gateway"
        result = CliRunner().invoke(main, words, env=environ)
        assert result.exit_code == 0, result.output


def shape(value: object) -> object:
    """The keys of a map, at any depth."""
    return {key: shape(item) for key, item in value.items()} if isinstance(value, Mapping) else ()


async def test_ready_answers_as_the_reference_shows(live_gateway: LiveGateway) -> None:
    (shown,) = [json.loads(block) for block in blocks(REFERENCE, "json")]
    await live_gateway.service.engine.owner.check()
    answer = await live_gateway.call("GET", "/readyz")
    assert shape(answer.body) == shape(shown)
    assert answer.body["status"] == shown["status"]


async def test_the_client_brings_a_git_history_there_and_back(
    live_gateway: LiveGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (snippet,) = blocks(REFERENCE, "python")
    with GitRepository(tmp_path / "repository") as repository:
        repository.commit({b"a.txt": b"a"})
    monkeypatch.chdir(tmp_path)
    names = {"url": f"{live_gateway.url}/me/project", "repository": tmp_path / "repository"}
    names |= {"token": await live_gateway.token("push")}
    await asyncio.to_thread(asyncio.run, run(snippet, names))
    assert (tmp_path / "out/a.txt").read_bytes() == b"a"

"""`gc` and `object purge` as a person gives them."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from gateway.service import Service
from gateway.wire.messages import PushObject
from leases.steps import Step
from tests.databases import run_apart
from tests.factories import History, make_history
from tests.integration.commands import CALLER, Commands
from tests.integration.gateways import settings_for


def push(commands: Commands, name: str, history: History) -> None:
    """Objects alone: what a chunk of a push stores."""

    async def work() -> None:
        settings = settings_for(commands.database_url, commands.data_dir)
        async with Service(settings, watch=False) as service:
            owner, slug = name.split("/")
            repo = await service.repos.ensure(
                owner=owner, slug=slug, visibility="public", caller=CALLER
            )
            objects = [PushObject(**item) for item in history.objects()]
            await service.segments.store(repo.repo_id, objects, CALLER)

    run_apart(work())


def test_gc_tells_first_and_removes_then(commands: Commands) -> None:
    commands.data_dir.mkdir()  # As the gateway does that has stored nothing yet.
    commands.run("gc", exits=3)
    history = make_history(1)
    push(commands, "o/r", history)
    commands.run("gc", exits=3)
    commands.run("repo", "delete", "o/r", "--yes")
    told = commands.json("gc", "--dry-run")
    assert (told["repos"], told["objects"], told["segments"]) == (1, len(history.contents), 1)
    done = commands.json("gc")
    for name in ("repos", "commits", "snapshots", "objects", "segments", "bytes"):
        assert done[name] == told[name], name
    assert commands.sql("SELECT count(*) FROM segments") == 0
    commands.run("gc", exits=3)
    commands.json("repo", "create", "o/r")


COLLECTIONS = (Step.CONTENT_REMOVED, Step.SEGMENTS_CONDEMNED, Step.SEGMENTS_DELETED)


@pytest.mark.parametrize("step", COLLECTIONS, ids=str)
def test_after_kill_9_the_next_run_finishes(commands: Commands, step: Step) -> None:
    push(commands, "o/r", make_history(1))
    push(commands, "o/kept", make_history(2))
    commands.run("repo", "delete", "o/r", "--yes")
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "gc"],
        env=commands.whole_environ | {"MPACK_CRASH_AT": step.value},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    commands.run("gc")
    assert commands.sql("SELECT count(*) FROM segments") == 1
    assert len(commands.view.keys("segments/")) == 1
    assert commands.sql("SELECT count(*) FROM objects") == len(make_history(2).contents)


JOINS = (Step.JOIN_PENDING, Step.JOIN_PUT, Step.SEGMENTS_JOINED)


def push_in_chunks(commands: Commands, name: str) -> int:
    """A segment for each history; how many."""
    for seed in range(3):
        push(commands, name, make_history(seed))
    return 3


def test_small_segments_are_joined_as_was_told(commands: Commands) -> None:
    count = push_in_chunks(commands, "o/r")
    commands.run("gc", exits=3)
    commands.environ["MPACK_JOIN_SEGMENTS_MIN"] = "2"
    commands.run("gc", "--no-join", exits=3)
    told = commands.json("gc", "--dry-run")
    done = commands.json("gc")
    assert done == told | {"dry_run": False}
    assert done["segments_joined"] == count
    assert commands.sql("SELECT count(*) FROM segments WHERE state = 'live'") == 1
    commands.run("audit", "verify")


@pytest.mark.parametrize("step", JOINS, ids=str)
def test_after_kill_9_the_next_run_joins(commands: Commands, step: Step) -> None:
    push_in_chunks(commands, "o/r")
    objects = commands.sql("SELECT count(*) FROM mpack_index")
    commands.environ["MPACK_JOIN_SEGMENTS_MIN"] = "2"
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "gc"],
        env=commands.whole_environ | {"MPACK_CRASH_AT": step.value},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    commands.run("gc", exits=3 if step is Step.SEGMENTS_JOINED else 0)
    commands.run("gc", "--unfinished-after", "0s", "--keep-joined", "0s")
    assert commands.sql("SELECT count(*) FROM segments") == 1
    assert len(commands.view.keys("segments/")) == 1
    assert commands.sql("SELECT count(*) FROM mpack_index") == objects


def test_purge_asks_and_tells(commands: Commands) -> None:
    history = make_history(1)
    push(commands, "o/r", history)
    object_id = next(iter(history.contents))
    commands.run("object", "purge", object_id, "--reason", "leaked", exits=2)
    planned = commands.json("object", "purge", object_id, "--reason", "leaked", "--dry-run")
    assert planned["repos"] == ["o/r"]
    done = commands.json("object", "purge", f"sha256:{object_id}", "--reason", "leaked", "--yes")
    assert done | {"dry_run": True} == planned
    commands.run("object", "purge", "ffff", "--reason", "x", "--yes", exits=3)
    commands.run("audit", "verify")
    assert "object.purged" in commands.run("audit", "report").stdout

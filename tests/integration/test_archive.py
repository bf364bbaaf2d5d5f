"""Old parts of the log leave the database: proven first, all or nothing, and the chain goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from leases.archive import Archiver, Manifest
from leases.archive_files import Part, held
from leases.clock import SystemClock
from leases.database import Database
from leases.errors import Unavailable
from leases.log import EventLog
from leases.postgres_ledger import PostgresLedger
from leases.steps import Step
from tests.databases import run_apart
from tests.integration.commands import Commands
from tests.integration.gateways import settings_for
from tests.integration.test_verify_export import SCRIPT
from tests.invariants import check_invariants
from tests.leasing import CALLER, connection_to, note, until

LATER = "2999-01-01T00:00:00Z"
LOCKS_AWAITED = """
SELECT count(*) FROM pg_locks WHERE NOT granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
SMALL = """
DROP TABLE events_p000000;
CREATE OR REPLACE FUNCTION event_partition_size() RETURNS bigint
LANGUAGE sql IMMUTABLE AS 'SELECT 16';
SELECT make_event_partition(0);
"""


@pytest.fixture
def old(commands: Commands) -> Commands:
    """Two full partitions, and a third with the end of a lease of the second, and an open one."""
    commands.sql_script(SMALL)
    for _ in range(8):
        commands.grant(ended=True)
    commands.run("sweep")
    commands.grant()
    return commands


def archive(commands: Commands, folder: Path, *args: str, exits: int = 0) -> dict[str, Any]:
    told = commands.json(
        "events", "archive", "--before", LATER, "--to", str(folder), *args, exits=exits
    )
    assert isinstance(told, dict)
    return told


def check(commands: Commands) -> None:
    async def work() -> None:
        from gateway.service import Service

        settings = settings_for(commands.database_url, commands.data_dir)
        async with Service(settings, watch=False) as service:
            await check_invariants(service.database, service.store)

    run_apart(work())


def live(commands: Commands) -> tuple[object, object]:
    counted = "SELECT count(*) FROM events", "SELECT count(*) FROM mpack_leases"
    return commands.sql(counted[0]), commands.sql(counted[1])


def offline(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    manifests = [word for one in sorted(folder.glob("manifest-*")) for word in ("--manifest", one)]
    return subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPT), *map(str, manifests), *args],
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_is_archived_is_gone_and_the_chain_goes_on(old: Commands, tmp_path: Path) -> None:
    folder, file = tmp_path / "archive", tmp_path / "live.ndjson"
    before = old.json("audit", "verify")
    told = archive(old, folder, "--dry-run")
    spans = [(part["first_position"], part["last_position"]) for part in told["parts"]]
    assert (spans, live(old)) == ([(1, 15), (16, 31)], (34, 9))
    assert not folder.exists()
    told = archive(old, folder)
    assert [part["leases"] for part in told["parts"]] == [5, 3]
    assert "not full yet" in told["then"]
    assert live(old) == (5, 1), "the open lease's two, one reclaimed, and two log.archived"
    assert old.sql("SELECT count(*) FROM events_p000000") == 15
    check(old)
    after = old.json("audit", "verify")
    assert (after["archived_position"], after["events"]) == (31, 5)
    head = f"{before['head_position']}:{before['head_hash']}"
    early = (
        "3:"
        + json.loads((folder / "manifest-000000000001-000000000015.json").read_text())[
            "head"
        ].partition(":")[2]
    )
    told = old.json("audit", "verify", "--head", head, "--head", early)
    note = "event 3 was published, and is archived: deploy/verify_export.py proves it"
    assert note in str(told["notes"])
    archive(old, folder, exits=3)

    old.run("events", "export", "--output", str(file))
    log_id = str(old.sql("SELECT log_id FROM event_head"))
    head = f"{after['head_position']}:{after['head_hash']}"
    done = offline(folder, str(file), "--log-id", log_id, "--head", head)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.startswith("ok       36 events, 1 to 36")
    leases = [
        json.loads(line)
        for path in sorted(folder.glob("leases-*"))
        for line in path.read_text().splitlines()
    ]
    assert {lease["state"] for lease in leases} == {"reclaimed"}
    assert len(leases) == 8


async def test_who_reads_the_log_keeps_nobody_from_appending(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    """An audit reads for minutes: the part stays then, and the head is free again at once."""
    log = EventLog(PostgresLedger(database), SystemClock())
    appending = asyncio.ensure_future(log.run())
    archiver = Archiver(database, log)
    async with connection_to(database_url) as reader, connection_to(database_url) as writer:
        await writer.execute(SMALL)
        await log.append_each([note(f"repo/{number}") for number in range(20)])
        (part,), _why = await archiver.parts(datetime.fromisoformat(LATER))
        manifest = await archiver.write(part, tmp_path, tell=lambda _events: None)
        await reader.execute("BEGIN; SELECT FROM events LIMIT 1")
        detaching = asyncio.ensure_future(archiver.detach(part, manifest, caller=CALLER))

        async def waiting() -> bool:
            told = await writer.fetchval(LOCKS_AWAITED)
            return bool(told) or detaching.done()

        await until(waiting)
        # Less than the two seconds that other statements wait for a lock.
        await writer.execute("SET lock_timeout = '1500ms'; SELECT FROM event_head FOR UPDATE")
        with pytest.raises(Unavailable):
            await detaching
    appending.cancel()
    await asyncio.wait([appending])


def test_a_moment_is_found_behind_what_is_archived(old: Commands, tmp_path: Path) -> None:
    """Halving must not end up where nothing is any more."""
    archive(old, tmp_path)
    moment = old.sql("SELECT max(recorded_at) FROM events")
    assert isinstance(moment, datetime)
    told = old.json("audit", "report", "--since", moment.isoformat())
    assert (told["first_position"], told["last_position"]) == (36, 36)


def test_the_table_is_rebuilt_without_what_is_archived(old: Commands, tmp_path: Path) -> None:
    archive(old, tmp_path, "--drop")
    assert old.sql("SELECT to_regclass('events_p000000')") is None
    assert old.json("audit", "rebuild") == {"rows_changed": 0}
    old.sql_script("TRUNCATE mpack_leases")
    assert old.json("audit", "rebuild") == {"rows_changed": 1}
    old.grant(ended=True)
    old.run("sweep")
    check(old)


def test_a_blob_of_an_archived_lease_is_a_finding_and_never_adopted(
    old: Commands, tmp_path: Path
) -> None:
    key = str(old.sql("SELECT min(storage_key) FROM mpack_leases WHERE state = 'reclaimed'"))
    archive(old, tmp_path)
    old.view.write([key], b"back again")
    told = old.json("sweep", "--orphans", exits=4)
    assert told["findings"] == [{"finding": "archived_blob", "key": key}]
    assert (told["adopted"], told["residue_deleted"]) == (0, 0)
    assert "was archived is there" in old.run("audit", "verify").stdout


REOPENED = """UPDATE mpack_leases SET state = 'active'
WHERE mpack_id = (SELECT min(mpack_id) FROM mpack_leases)"""


@pytest.mark.parametrize(
    "statement, why",
    [
        (REOPENED, "is still open"),
        ("DELETE FROM events WHERE position = 15", "event 1 is missing"),
    ],
    ids=["open-lease", "hole"],
)
def test_what_must_stay_stays(old: Commands, tmp_path: Path, statement: str, why: str) -> None:
    old.sql_script(f"SET session_replication_role = replica; {statement}")
    assert why in archive(old, tmp_path, exits=3)["then"]
    assert list(tmp_path.glob("*.ndjson")) == []


def test_a_pause_in_force_stays(commands: Commands, tmp_path: Path) -> None:
    commands.sql_script(SMALL)
    commands.run("reap", "pause", "--reason", "moving house")
    for _ in range(8):
        commands.grant(ended=True)
    assert "paused" in archive(commands, tmp_path, exits=3)["then"]
    commands.run("reap", "resume")
    commands.run("sweep")
    archive(commands, tmp_path)
    check(commands)


def test_nothing_young_goes(old: Commands, tmp_path: Path) -> None:
    old.run("events", "archive", "--before", "1h", "--to", str(tmp_path), exits=3)
    assert live(old) == (34, 9)


def test_an_archive_that_does_not_prove_itself_detaches_nothing(
    old: Commands, tmp_path: Path
) -> None:
    old.sql_script(
        "SET session_replication_role = replica; UPDATE events SET actor = 'x' WHERE position = 20"
    )
    result = old.run(
        "events", "archive", "--before", LATER, "--to", str(tmp_path), "--json", exits=1
    )
    assert "does not prove itself" in result.stderr
    assert len(list(tmp_path.glob("manifest-*"))) == 1, "the first part was whole"
    assert old.sql("SELECT min(position) FROM events") == 16


def test_a_death_between_the_files_and_the_detaching_is_mended_by_the_next_run(
    old: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    async def die(*_args: object, **_options: object) -> int:
        raise Killed

    folder = tmp_path / "archive"
    folder.mkdir()
    (folder / "events-000000000001-000000000015.ndjson.part").write_text("half of it")
    detach = Archiver.detach
    with monkeypatch.context() as patch:
        patch.setattr(Archiver, "detach", die)
        result = old.run_any("events", "archive", "--before", LATER, "--to", str(folder))
        assert isinstance(result.exception, Killed)
    assert live(old) == (34, 9)
    check(old)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}

    async def stopped(self: Archiver, part: Part, manifest: Manifest, **options: Any) -> int:
        """The answer to the COMMIT is lost."""
        await detach(self, part, manifest, **options)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Archiver, "detach", stopped)
        result = old.run_any("events", "archive", "--before", LATER, "--to", str(folder))
        assert isinstance(result.exception, Killed)
    check(old)
    assert [part["first_position"] for part in archive(old, folder)["parts"]] == [16]
    assert {name: (folder / name).read_bytes() for name in first} == first
    assert live(old) == (5, 1)
    check(old)


ARCHIVES = tuple(step for step in Step if step.startswith("archive."))


@pytest.mark.parametrize("step", ARCHIVES, ids=str)
def test_after_kill_9_the_next_run_archives_the_rest(
    old: Commands, tmp_path: Path, step: Step
) -> None:
    """With --drop the files are all that is left, so what they lack is lost."""
    folder, file = tmp_path / "archive", tmp_path / "live.ndjson"
    facts, leases = exported(old, file), lease_ids(old)
    died = archive_apart(old, folder, "--drop", MPACK_CRASH_AT=step.value)
    assert died == -signal.SIGKILL
    committed = step is Step.ARCHIVE_COMMITTED
    assert live(old) == ((20, 4) if committed else (34, 9)), "all of a part or nothing"
    check(old)
    old.run("audit", "verify")

    told = archive(old, folder, "--drop")
    assert [part["first_position"] for part in told["parts"]] == ([16] if committed else [1, 16])
    archive(old, folder, "--drop", exits=3)
    check(old)
    old.run("audit", "verify")
    left = exported(old, file)
    written = lines_of(folder, "events")
    assert (written + left)[: len(facts)] == facts, "every event once, and as it was"
    assert [json.loads(line)["type"] for line in left[-2:]] == ["log.archived"] * 2
    gone = [json.loads(line)["mpack_id"] for line in lines_of(folder, "leases")]
    assert sorted(gone + lease_ids(old)) == sorted(leases), "every lease once"
    check_files(folder, [json.loads(line)["data"] for line in left[-2:]])
    log_id = str(old.sql("SELECT log_id FROM event_head"))
    head = old.json("audit", "verify")
    done = offline(
        folder, str(file), "--log-id", log_id,
        "--head", f"{head['head_position']}:{head['head_hash']}",
    )  # fmt: skip
    assert done.stdout.startswith("ok       36 events, 1 to 36"), done.stdout + done.stderr


def archive_apart(commands: Commands, folder: Path, *args: str, **environ: str) -> int:
    """In a process of its own; its exit code."""
    words = ["events", "archive", "--before", LATER, "--to", str(folder), *args]
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *words],
        env=commands.whole_environ | environ,
        capture_output=True,
        check=False,
    )
    return done.returncode


def exported(commands: Commands, file: Path) -> list[str]:
    """The lines of the log in the database."""
    commands.run("events", "export", "--output", str(file))
    return file.read_text().splitlines()


def lines_of(folder: Path, kind: str) -> list[str]:
    """Those of an archive's files, in their order."""
    files = sorted(folder.glob(f"{kind}-*.ndjson"))
    return [line for file in files for line in file.read_text().splitlines()]


def lease_ids(commands: Commands) -> list[str]:
    found = commands.sql("SELECT array_agg(mpack_id) FROM mpack_leases")
    assert isinstance(found, list)
    return found


def check_files(folder: Path, facts: Sequence[dict[str, Any]]) -> None:
    """The files are those that the log names, and no others lie there."""
    expected = set()
    for fact in facts:
        span = f"{fact['first_position']:012}-{fact['last_position']:012}"
        for kind in ("events", "leases"):
            name = f"{kind}-{span}.ndjson"
            found = sha256((folder / name).read_bytes()).hexdigest()
            assert found == fact[f"{kind}_sha256"], name
            expected.add(name)
        expected.add(f"manifest-{span}.json")
    assert {path.name for path in folder.iterdir()} == expected


@pytest.mark.parametrize("drop", [True, False], ids=["drop", "keep"])
@pytest.mark.parametrize(
    "when", [None, Step.ARCHIVE_EVENTS_WRITTEN], ids=["before", "between the files"]
)
def test_a_run_that_is_overtaken_leaves_the_files_alone(
    old: Commands, tmp_path: Path, when: Step | None, *, drop: bool
) -> None:
    """A killed run's COMMIT may still be under way when the next one looks: its files are right."""
    folder, files = tmp_path / "archive", {}
    options = ["--drop"] if drop else []

    def overtake(step: Step | None) -> None:
        if step is when:
            assert archive_apart(old, folder, *options) == 0
            files.update(contents(folder))

    async def work() -> None:
        from gateway.service import Service

        settings = settings_for(old.database_url, old.data_dir)
        async with Service(settings, watch=False) as service:
            late = Archiver(service.database, service.engine.log, steps=overtake)
            (part, _next), _why = await late.parts(datetime.max.replace(tzinfo=UTC))
            overtake(None)
            with pytest.raises(Unavailable, match="moved on"):
                await late.write(part, folder, tell=lambda _events: None)

    run_apart(work())
    assert len(files) == 6
    assert {name: contents(folder)[name] for name in files} == files


def test_what_is_archived_is_on_the_disk_to_its_last_byte(
    old: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows go when the files are safe from a loss of power, too."""
    folder, synced = tmp_path / "archive", {}
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        told = os.fstat(descriptor)
        synced[told.st_ino] = told.st_size

    monkeypatch.setattr(os, "fsync", watched)
    archive(old, folder)
    for path in folder.iterdir():
        told = path.stat()
        assert synced[told.st_ino] == told.st_size > 0, path.name


def test_two_runs_do_not_write_into_one_folder(old: Commands, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    words = ["events", "archive", "--before", LATER, "--to", str(folder)]
    with held(folder):
        assert "another archive is written there" in old.run(*words, exits=1).stderr
        assert (live(old), contents(folder)) == ((34, 9), {})
    archive(old, folder)


def test_a_lease_without_its_row_is_not_archived(old: Commands, tmp_path: Path) -> None:
    old.sql_script(
        "DELETE FROM mpack_leases WHERE mpack_id = (SELECT min(mpack_id) FROM mpack_leases)"
    )
    words = ["events", "archive", "--before", LATER, "--to", str(tmp_path / "archive")]
    assert "audit rebuild" in old.run(*words, exits=1).stderr
    assert live(old) == (34, 8)
    old.run("audit", "rebuild")
    archive(old, tmp_path / "archive")
    check(old)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_archive_that_was_edited_is_named(old: Commands, tmp_path: Path) -> None:
    archive(old, tmp_path)
    assert offline(tmp_path).returncode == 0
    file = tmp_path / "events-000000000016-000000000031.ndjson"
    whole = file.read_text()
    file.write_text(whole.replace('"actor":"test"', '"actor":"somebody"', 1))
    told = offline(tmp_path).stdout
    assert "its hash does not follow" in told
    assert "is not the file that its manifest names" in told
    file.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    assert "does not end with 31:" in offline(tmp_path).stdout
    file.unlink()
    assert offline(tmp_path).returncode == 2

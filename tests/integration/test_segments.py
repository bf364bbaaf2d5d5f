import asyncio
from typing import Any

import msgpack
import pytest
from sqlalchemy import event

from gateway.errors import Incomplete
from gateway.wire.ids import object_id_of
from gateway.wire.messages import PushObject
from leases.database import Database
from leases.errors import StoreUnavailable
from leases.steps import Step
from tests.factories import History, make_history
from tests.integration.pushing import CALLER, gate_on


class Crash(Exception):
    """The process ends here."""


def history_of(count: int = 5) -> History:
    return make_history(1, commits=1, files=count)


async def test_a_chunk_becomes_one_live_segment_that_the_index_points_into(
    database: Database,
) -> None:
    gate = gate_on(database)
    repo = await gate.repo()
    history = history_of(400)
    result = await gate.push_objects(repo, history)
    assert (result.stored, result.skipped) == (400, 0)
    ((key, blob),) = gate.store.blobs.items()
    (segment,) = await database.fetch("SELECT * FROM segments")
    assert (segment["state"], segment["storage_key"]) == ("live", key)
    assert key == f"segments/{segment['mpack_id']}"
    assert (segment["size_bytes"], segment["sha256"]) == (len(blob), object_id_of(blob))
    for row in await database.fetch("SELECT * FROM mpack_index"):
        entry = blob[row["byte_offset"] : row["byte_offset"] + row["byte_length"]]
        object_id = row["entity_id"]
        expected = {"object_id": object_id, "content": history.contents[object_id]}
        assert list(msgpack.unpackb(entry).items()) == list(expected.items())
        assert row["mpack_id"] == segment["mpack_id"]
    sizes = await database.fetch("SELECT object_id, size_bytes, storage_uri FROM objects")
    assert {row["object_id"]: row["size_bytes"] for row in sizes} == {
        object_id: len(content) for object_id, content in history.contents.items()
    }
    assert {row["storage_uri"] for row in sizes} == {key}


async def test_what_is_known_is_skipped_without_a_put(database: Database) -> None:
    gate = gate_on(database)
    repo = await gate.repo()
    await gate.push_objects(repo, history_of(5))
    result = await gate.push_objects(repo, history_of(5))
    assert (result.stored, result.skipped) == (0, 5)
    assert await gate.count("segments") == len(gate.store.blobs) == 1


async def test_known_content_gives_another_repo_its_share(database: Database) -> None:
    """A second repo that pushes the same content clones whole."""
    gate = gate_on(database)
    await gate.push_objects(await gate.repo("one"), history_of(5))
    other = await gate.repo("two")
    more = make_history(2, commits=1, files=2)
    more.contents |= history_of(5).contents
    result = await gate.push_objects(other, more)
    assert (result.stored, result.skipped) == (2, 5)
    rows = await database.fetch(
        "SELECT object_id FROM object_refs WHERE repo_id = $1", other.repo_id
    )
    assert {row["object_id"] for row in rows} == more.contents.keys()


async def test_one_wrong_id_refuses_the_chunk_and_stores_nothing(database: Database) -> None:
    gate = gate_on(database)
    repo = await gate.repo()
    wrong = "7" * 64
    good = PushObject(object_id=object_id_of(b"good"), content=b"good")
    bad = PushObject(object_id=wrong, content=b"bad")
    with pytest.raises(Incomplete, match=wrong):
        await gate.segments.store(repo.repo_id, [good, bad], CALLER)
    assert sum((await gate.counts()).values()) == 0
    assert gate.store.blobs == {}


async def test_large_contents_are_verified_too(database: Database) -> None:
    """They are hashed in a thread."""
    gate = gate_on(database)
    repo = await gate.repo()
    content = b"x" * 2**20
    good = PushObject(object_id=object_id_of(content), content=content)
    assert (await gate.segments.store(repo.repo_id, [good], CALLER)).stored == 1
    bad = PushObject(object_id=object_id_of(b"other"), content=content)
    with pytest.raises(Incomplete):
        await gate.segments.store(repo.repo_id, [bad], CALLER)


async def test_an_object_that_stands_twice_in_a_chunk_is_stored_once(database: Database) -> None:
    gate = gate_on(database)
    repo = await gate.repo()
    item = PushObject(object_id="sha256:" + object_id_of(b"a"), content=b"a", path="a.txt")
    result = await gate.segments.store(repo.repo_id, [item, item], CALLER)
    assert result.stored == 1
    (row,) = await database.fetch("SELECT object_id, path FROM objects")
    assert tuple(row) == (object_id_of(b"a"), "a.txt")


async def test_an_empty_chunk_writes_nothing(database: Database) -> None:
    gate = gate_on(database)
    repo = await gate.repo()
    assert (await gate.segments.store(repo.repo_id, [], CALLER)).stored == 0
    assert await gate.count("segments") == 0


async def test_four_hundred_objects_take_a_handful_of_statements(database: Database) -> None:
    """The public server took one SELECT for each of them."""
    statements: list[str] = []

    def listen(connection: Any, *_: Any) -> None:
        driver = connection.driver_connection
        driver.add_query_logger(lambda record: statements.append(record.query))

    gate = gate_on(database)
    repo = await gate.repo()
    await database.engine.dispose()
    event.listen(database.engine.sync_engine.pool, "connect", listen)
    await gate.push_objects(repo, history_of(400))
    tables = ("objects", "object_refs", "mpack_index", "segments")
    ours = [sql for sql in statements if any(table in sql for table in tables)]
    assert 0 < len(ours) <= 6, statements


@pytest.mark.parametrize(
    "step", [Step.SEGMENT_PENDING, Step.SEGMENT_PUT, Step.SEGMENT_LIVE], ids=str
)
async def test_storing_again_after_a_crash_ends_in_the_same_state(
    database: Database, step: Step
) -> None:
    """Whatever was left behind, the index never points to a segment without bytes."""

    def crash(reached: Step) -> None:
        if reached is step:
            raise Crash

    broken = gate_on(database, steps=crash)
    repo = await broken.repo()
    with pytest.raises(Crash):
        await broken.push_objects(repo, history_of(5))
    gate = gate_on(database)
    gate.store.blobs = broken.store.blobs
    result = await gate.push_objects(repo, history_of(5))
    assert result.stored == (0 if step is Step.SEGMENT_LIVE else 5)
    rows = await database.fetch(
        "SELECT s.storage_key, s.state FROM mpack_index JOIN segments s USING (mpack_id)"
    )
    assert len(rows) == 5
    assert {row["state"] for row in rows} == {"live"}
    assert {row["storage_key"] for row in rows} <= gate.store.blobs.keys()
    assert await gate.count("object_refs") == 5


async def test_a_store_that_fails_leaves_a_pending_segment_and_no_index(
    database: Database,
) -> None:
    class Broken:
        supports_presign = False

        async def put(self, key: str, data: Any) -> None:
            raise RuntimeError("the host's storage failed")

    gate = gate_on(database)
    repo = await gate.repo()
    gate.segments._store = Broken()  # type: ignore[assignment]  # the one method that is called
    with pytest.raises(StoreUnavailable):
        await gate.push_objects(repo, history_of(5))
    assert sum((await gate.counts()).values()) == 0
    (row,) = await database.fetch("SELECT state FROM segments")
    assert row["state"] == "pending"


async def test_chunks_that_overlap_may_be_stored_at_once(database: Database) -> None:
    """Both may write the bytes; every object is readable, and nobody waits for ever."""
    gate = gate_on(database)
    repos = [await gate.repo(slug) for slug in ("one", "two", "three", "four")]
    async with asyncio.TaskGroup() as group:
        for repo in repos:
            group.create_task(gate.push_objects(repo, history_of(100)))
    assert await gate.count("objects") == 100
    assert await gate.count("object_refs") == 400
    rows = await database.fetch("SELECT DISTINCT entity_id FROM mpack_index")
    assert len(rows) == 100

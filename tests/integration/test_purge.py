"""One object's bytes are gone from everywhere; its neighbours are not."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import IncompleteRepo
from gateway.packs.garbage import Garbage
from gateway.packs.purge import Purge
from leases.audit import Auditor
from leases.errors import InvalidRequest, NotFound, StoreUnavailable
from leases.revocation import Revocation
from tests.factories import History, make_history
from tests.integration.fetching import Bench, bench_on, unpacked
from tests.integration.pushing import CALLER


@pytest.fixture
async def bench(engine: AsyncEngine) -> AsyncIterator[Bench]:
    async with bench_on(engine) as bench:
        yield bench


def purge_of(bench: Bench) -> Purge:
    log = bench.gateway.leases.log
    revocation = Revocation(bench.database, log, replica="test")
    return Purge(bench.database, log, bench.store, revocation=revocation)


def two_commits() -> tuple[History, str]:
    """A history whose head does without the object that its root had."""
    history = History()
    secret = history.content(b"the secret" * 10)
    kept = {f"{number}.txt": history.content(b"%d" % number * 30) for number in range(9)}
    root = history.commit({"secret.txt": secret, **kept})
    history.commit(kept, parents=[root])
    return history, secret


async def cloned(bench: Bench, repo_id: str, history: History) -> set[str]:
    """A clone of the head alone: what the client has is its parent."""
    answer = await bench.fetch(
        repo_id, [history.head.commit_id], history.head.parent_ids, share=False
    )
    return {entry["object_id"] for entry in unpacked(bench.stored(answer))["objects"]}


async def test_the_bytes_are_gone_and_the_neighbours_stay(bench: Bench) -> None:
    history, secret = two_commits()
    await bench.pushed(history)
    done = await purge_of(bench).purge(secret[:12], reason="leaked", caller=CALLER)
    assert (done.repos, done.segments_rewritten, done.segments_deleted) == (["ada/demo"], 1, 1)
    assert not any(b"the secret" in blob for blob in bench.store.blobs.values())
    assert len([key for key in bench.store.blobs if key.startswith("segments/")]) == 1
    assert await bench.gate.count("segments") == 1
    alone = History(contents=history.contents)
    alone.commit(history.head.manifest)
    other = await bench.pushed(alone, "other")
    answer = await bench.fetch(other, [alone.head.commit_id])
    entries = unpacked(bench.stored(answer))["objects"]
    assert {one["object_id"]: one["content"] for one in entries} == {
        one: history.contents[one] for one in history.contents if one != secret
    }


async def test_who_needs_it_is_refused_and_the_log_says_why(bench: Bench) -> None:
    history, secret = two_commits()
    repo_id = await bench.pushed(history)
    await purge_of(bench).purge(secret, reason="leaked", caller=CALLER)
    with pytest.raises(IncompleteRepo):
        await bench.fetch(repo_id, [history.head.commit_id])
    assert await cloned(bench, repo_id, history) == set()
    (event,) = await bench.gate.log.read_stream(f"object/{secret}")
    assert event.type == "object.purged"
    assert '"reason":"leaked"' in event.data
    assert (await Auditor(bench.database, bench.gate.log).verify()).ok


async def test_packs_that_hold_it_are_revoked(bench: Bench) -> None:
    history, secret = two_commits()
    repo_id = await bench.pushed(history)
    answer = await bench.fetch(repo_id, [history.head.commit_id])
    assert (await purge_of(bench).purge(secret, reason="x", caller=CALLER)).leases_revoked == 1
    row = await bench.database.row(
        "SELECT revoked_at FROM mpack_leases WHERE mpack_id = $1", answer["mpack_id"]
    )
    assert row["revoked_at"] is not None


async def test_leases_that_have_ended_are_not_counted(bench: Bench) -> None:
    history, secret = two_commits()
    repo_id = await bench.pushed(history)
    answer = await bench.fetch(repo_id, [history.head.commit_id])
    assert answer["mpack_id"] is not None
    await bench.gateway.leases.lessor.revoke(answer["mpack_id"], reason="x", caller=CALLER)
    assert (await purge_of(bench).plan(secret)).leases_revoked == 0
    assert (await purge_of(bench).purge(secret, reason="x", caller=CALLER)).leases_revoked == 0


async def test_a_plan_changes_nothing(bench: Bench) -> None:
    history, secret = two_commits()
    await bench.pushed(history)
    blobs, counts = dict(bench.store.blobs), await bench.gate.counts()
    planned = await purge_of(bench).plan(secret)
    assert (bench.store.blobs, await bench.gate.counts()) == (blobs, counts)
    assert await purge_of(bench).purge(secret, reason="x", caller=CALLER) == planned


async def test_an_object_alone_in_its_segment_takes_it_along(bench: Bench) -> None:
    history = History()
    only = history.content(b"alone")
    history.commit({"a": only})
    await bench.pushed(history)
    done = await purge_of(bench).purge(only, reason="x", caller=CALLER)
    assert (done.segments_rewritten, done.segments_deleted) == (0, 1)
    assert not [key for key in bench.store.blobs if key.startswith("segments/")]


async def test_it_may_be_pushed_again(bench: Bench) -> None:
    history, secret = two_commits()
    repo_id = await bench.pushed(history)
    await purge_of(bench).purge(secret, reason="x", caller=CALLER)
    await bench.gate.push_objects(bench.repos["demo"], history)
    await bench.fetch(repo_id, [history.head.commit_id])
    await purge_of(bench).purge(secret, reason="again", caller=CALLER)
    assert len(await bench.gate.log.read_stream(f"object/{secret}")) == 2


async def test_what_was_cut_short_is_finished(bench: Bench) -> None:
    """The store fails behind the transaction: the next purge, or `gc`, deletes the blob."""
    history, secret = two_commits()
    repo_id = await bench.pushed(history)
    await bench.fetch(repo_id, [history.head.commit_id])
    bench.store.fail_next_deletes(1, StoreUnavailable())
    done = await purge_of(bench).purge(secret[:12], reason="x", caller=CALLER)
    assert done.blobs_failed == 1
    assert any(b"the secret" in blob for blob in bench.store.blobs.values())
    done = await purge_of(bench).purge(secret[:12], reason="x", caller=CALLER)
    assert (done.repos, done.blobs_failed) == ([repo_id], 0)
    assert not any(
        b"the secret" in blob for key, blob in bench.store.blobs.items() if "segments/" in key
    )
    assert [one async for one in Garbage(bench.database, bench.gate.log, bench.store).look()] == []


async def test_what_cannot_be_told_apart_is_refused(bench: Bench) -> None:
    await bench.pushed(make_history(1, files=40))
    rows = await bench.database.fetch("SELECT object_id FROM objects ORDER BY object_id")
    firsts = [row["object_id"][0] for row in rows]
    doubled = next(first for first in firsts if firsts.count(first) > 1)
    for prefix, refusal in (("ffff" * 16, NotFound), ("", NotFound), (doubled, InvalidRequest)):
        with pytest.raises(refusal):
            await purge_of(bench).look(prefix)


async def test_a_blob_of_other_code_that_holds_more_is_left_alone(bench: Bench) -> None:
    history, secret = two_commits()
    await bench.pushed(history)
    await bench.database.execute("DELETE FROM segments")
    with pytest.raises(InvalidRequest, match="other code"):
        await purge_of(bench).purge(secret, reason="x", caller=CALLER)
    assert await bench.gate.count("objects") == len(history.contents)

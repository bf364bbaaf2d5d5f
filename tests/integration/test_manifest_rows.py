import pytest

from gateway.packs.manifest import CHAIN_DEPTH_MAX
from gateway.packs.manifest_rows import (
    SNAPSHOTS_PER_BATCH_MAX,
    chain_depths,
    entry_counts,
    iterate_manifests,
    load_manifests,
)
from gateway.packs.transaction import reading
from leases.database import Database
from leases.errors import Corrupt
from tests.factories import History, make_history
from tests.integration.pushing import gate_on


async def stored(database: Database, history: History) -> list[str]:
    """Push the history; answers its snapshot ids, parents before children."""
    gate = gate_on(database)
    await gate.push(await gate.repo(), history.bundle(with_objects=True))
    return list(dict.fromkeys(made.snapshot_id for made in history.commits.values()))


def manifests_of(history: History) -> dict[str, dict[str, str]]:
    return {made.snapshot_id: dict(made.manifest) for made in history.commits.values()}


async def test_every_manifest_of_a_history_is_read_back(database: Database) -> None:
    history = make_history(1, commits=150, files=20)
    ids = await stored(database, history)
    async with reading(database) as reader:
        assert await load_manifests(reader, ids) == manifests_of(history)
        assert await load_manifests(reader, ids[::-1]) == manifests_of(history)
        assert await load_manifests(reader, [ids[77]]) == {ids[77]: manifests_of(history)[ids[77]]}


async def test_most_are_deltas_and_no_chain_is_longer_than_the_bound(
    database: Database,
) -> None:
    history = make_history(1, commits=150, files=20)
    ids = await stored(database, history)
    async with reading(database) as reader:
        depths = await chain_depths(reader, ids)
        assert await entry_counts(reader, ids) == {
            key: len(manifest) for key, manifest in manifests_of(history).items()
        }
    assert max(depths.values()) == CHAIN_DEPTH_MAX
    whole = sum(depth == 0 for depth in depths.values())
    assert 0 < whole < len(ids) / 5


async def test_iterating_keeps_the_order_over_several_batches(database: Database) -> None:
    history = make_history(2, commits=SNAPSHOTS_PER_BATCH_MAX + 100, files=3, merges=False)
    ids = await stored(database, history)
    expected = manifests_of(history)
    async with reading(database) as reader:
        seen = [item async for item in iterate_manifests(reader, ["7" * 64, *ids])]
    assert [snapshot_id for snapshot_id, _ in seen] == ids
    assert all(manifest == expected[snapshot_id] for snapshot_id, manifest in seen)


async def test_unknown_ids_are_left_out(database: Database) -> None:
    async with reading(database) as reader:
        assert await load_manifests(reader, ["7" * 64]) == {}
        assert await load_manifests(reader, []) == {}


async def test_rows_of_other_code_may_write_prefixed_ids(database: Database) -> None:
    history = make_history(3, commits=40, files=20)
    ids = await stored(database, history)
    await database.execute("UPDATE snapshots SET base_snapshot_id = 'sha256:' || base_snapshot_id")
    async with reading(database) as reader:
        assert await load_manifests(reader, ids) == manifests_of(history)
        assert max((await chain_depths(reader, ids)).values()) > 1


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM snapshots WHERE manifest_blob IS NOT NULL",
        "UPDATE snapshots SET manifest_blob = NULL",
        (
            "UPDATE snapshots SET manifest_blob = NULL, delta_blob = '\\x80',"
            " base_snapshot_id = snapshot_id"
        ),
    ],
    ids=["base gone", "nothing there", "a cycle"],
)
async def test_damage_is_corruption_and_never_a_wrong_manifest(
    database: Database, damage: str
) -> None:
    ids = await stored(database, make_history(4, commits=10, files=20))
    await database.execute(damage)
    async with reading(database) as reader:
        with pytest.raises(Corrupt):
            await load_manifests(reader, ids[-1:])
        await chain_depths(reader, ids)

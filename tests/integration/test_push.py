from typing import Any

import pytest

from gateway.errors import TooLarge
from gateway.packs.push import BRANCHES_MAX
from gateway.packs.repos import find_repo
from gateway.wire.ids import IdForm
from leases.database import Database
from tests.factories import History, make_history
from tests.integration.pushing import Gate, gate_on


async def pushed(gate: Gate, history: History, *, slug: str = "demo") -> Any:
    repo = await gate.repo(slug)
    await gate.push_objects(repo, history)
    await gate.push(repo, history.bundle())
    return repo


async def test_the_first_push_stores_the_whole_history(database: Database) -> None:
    gate = gate_on(database)
    history = make_history(5, commits=30)
    repo = await gate.repo()
    await gate.push_objects(repo, history)
    result = await gate.push(repo, history.bundle())
    head = history.head.commit_id
    assert (result.ok, result.remote_head, result.branch_heads) == (True, head, {"main": head})
    rows = {row["commit_id"]: row for row in await database.fetch("SELECT * FROM commits")}
    graph = {row["commit_id"]: row for row in await database.fetch("SELECT * FROM commit_graph")}
    assert rows.keys() == graph.keys() == history.commits.keys()
    for made in history.commits.values():
        row, place = rows[made.commit_id], graph[made.commit_id]
        assert row["record"] == made.packed
        assert row["timestamp"].isoformat() == made.committed_at
        assert (row["author"], row["message"]) == ("Ada", made.record["message"])
        assert tuple(row["parent_ids"]) == tuple(place["parent_ids"]) == made.parent_ids
        assert place["generation"] == made.generation
        assert row["snapshot_id"] == place["snapshot_id"] == made.snapshot_id
    introduced = {tuple(row) for row in await database.fetch("SELECT * FROM introductions")}
    assert introduced == {
        (object_id, made.commit_id)
        for made in history.commits.values()
        for object_id in history.introduced(made)
    }


async def test_the_first_push_sets_the_default_branch_and_is_one_event(
    database: Database,
) -> None:
    gate = gate_on(database)
    history = make_history(1, commits=2)
    repo = await gate.repo()
    await gate.push(repo, history.bundle(with_objects=True), branch="trunk")
    after = await find_repo(database, owner="ada", slug="demo")
    assert after is not None
    assert after.default_branch == "trunk"
    assert after.pushed_at is not None
    assert await gate.events(repo) == ["repo.created", "repo.pushed"]
    (stored,) = await gate.log.read_stream(f"repo/{repo.repo_id}", after_version=1)
    assert (stored.actor, stored.request_id) == ("token:test", "request-1")
    assert history.head.commit_id in stored.data


async def test_a_later_branch_leaves_the_default_branch_alone(database: Database) -> None:
    gate = gate_on(database)
    history = make_history(1, commits=2)
    repo = await pushed(gate, history)
    result = await gate.push(repo, history.bundle([history.head]), branch="side")
    assert result.branch_heads == {"main": result.remote_head, "side": result.remote_head}
    after = await gate.repos.find(owner="ada", slug="demo")
    assert after is not None
    assert after.default_branch == "main"


async def test_a_branch_too_many_is_refused_and_the_others_go_on(database: Database) -> None:
    gate = gate_on(database)
    history = make_history(1, commits=2)
    repo = await pushed(gate, history)
    head = history.head
    await database.execute(
        "INSERT INTO branches (repo_id, name, head_commit_id)"
        " SELECT $1, 'branch-' || number, $2 FROM generate_series(2, $3::int) AS number",
        repo.repo_id,
        head.commit_id,
        BRANCHES_MAX,
    )
    with pytest.raises(TooLarge, match="10,000 branches"):
        await gate.push(repo, history.bundle([head]), branch="side")
    following = history.commit({"a": history.content(b"more")}, parents=[head])
    await gate.push_objects(repo, history)
    result = await gate.push(repo, history.bundle([following]))
    assert result.branch_heads["main"] == following.commit_id
    assert "side" not in result.branch_heads


async def test_objects_may_come_along_with_the_push(database: Database) -> None:
    gate = gate_on(database)
    history = make_history(1, commits=4)
    repo = await gate.repo()
    assert (await gate.push(repo, history.bundle(with_objects=True))).ok
    assert await gate.count("object_refs") == len(history.contents)


async def test_pushing_the_same_again_changes_nothing_and_is_no_event(
    database: Database,
) -> None:
    gate = gate_on(database)
    history = make_history(2, commits=10)
    repo = await pushed(gate, history)
    before = (await gate.counts(), await gate.events(repo), dict(gate.store.blobs))
    result = await gate.push(repo, history.bundle(with_objects=True))
    assert (result.ok, result.message) == (True, "up to date")
    assert result.branch_heads == {"main": history.head.commit_id}
    assert (await gate.counts(), await gate.events(repo), dict(gate.store.blobs)) == before


async def test_known_manifests_are_not_even_decoded(database: Database) -> None:
    """A merge sends 155 snapshots where 2 are new: what is known is skipped by its id."""
    gate = gate_on(database)
    history = make_history(2, commits=5)
    repo = await pushed(gate, history)
    bundle = history.bundle()
    for snapshot in bundle["snapshots"]:
        snapshot["manifest"] = "not a manifest"
    assert (await gate.push(repo, bundle)).ok


async def test_the_next_commit_alone_is_a_push(database: Database) -> None:
    gate = gate_on(database)
    history = make_history(3, commits=8)
    repo = await pushed(gate, history)
    before = history.head
    manifest = {**before.manifest, "new.txt": history.content(b"new")}
    after = history.commit(manifest, parents=[before])
    bundle = history.bundle([after])
    bundle["objects"] = history.objects(history.introduced(after))
    assert (await gate.push(repo, bundle)).remote_head == after.commit_id
    rows = await database.fetch(
        "SELECT object_id FROM introductions WHERE commit_id = $1", after.commit_id
    )
    assert [row["object_id"] for row in rows] == list(history.introduced(after))
    (row,) = await database.fetch(
        "SELECT manifest_blob, base_snapshot_id, entry_count FROM snapshots WHERE snapshot_id = $1",
        after.snapshot_id,
    )
    assert tuple(row) == (None, before.snapshot_id, len(manifest))


async def test_force_moves_a_branch_to_where_it_did_not_descend_from(
    database: Database,
) -> None:
    gate = gate_on(database)
    repo = await pushed(gate, make_history(1, commits=3))
    other = make_history(2, commits=3)
    result = await gate.push(repo, other.bundle(with_objects=True), force=True)
    assert result.remote_head == await gate.head(repo) == other.head.commit_id


async def test_a_named_head_moves_the_branch_without_commits(database: Database) -> None:
    gate = gate_on(database)
    history = make_history(1, commits=3, merges=False)
    repo = await pushed(gate, history)
    root = next(iter(history.commits))
    result = await gate.push(repo, {"branch_heads": {"old": root}}, branch="old")
    assert result.branch_heads == {"main": history.head.commit_id, "old": root}


async def test_equal_content_in_a_second_repo_is_stored_once_and_belongs_to_both(
    database: Database,
) -> None:
    gate = gate_on(database)
    history = make_history(4, commits=10)
    await pushed(gate, history, slug="one")
    before = await gate.counts()
    other = await pushed(gate, history, slug="two")
    after = await gate.counts()
    shared = ("objects", "mpack_index", "snapshots", "commits", "commit_graph", "introductions")
    assert {table: after[table] for table in shared} == {t: before[t] for t in shared}
    per_repo = ("object_refs", "snapshot_refs", "commit_refs", "branches")
    assert {table: after[table] for table in per_repo} == {t: 2 * before[t] for t in per_repo}
    assert await gate.head(other) == history.head.commit_id
    assert await gate.events(other) == ["repo.created", "repo.pushed"]


async def test_a_newer_client_is_answered_with_prefixed_ids(database: Database) -> None:
    gate = gate_on(database)
    history = make_history(4, commits=5, form=IdForm.PREFIXED)
    repo = await gate.repo()
    await gate.push_objects(repo, history)
    result = await gate.push(repo, history.bundle())
    head = history.head
    assert result.remote_head == IdForm.PREFIXED.write(head.commit_id)
    assert await gate.head(repo) == head.commit_id
    (row,) = await database.fetch("SELECT record FROM commits WHERE commit_id = $1", head.commit_id)
    assert row["record"] == head.packed
    prefixed = await database.fetch("SELECT 1 FROM objects WHERE object_id LIKE 'sha256:%'")
    assert prefixed == []


async def test_a_child_of_another_codes_commit_finds_its_place(database: Database) -> None:
    """No graph row, no record, ids with a prefix: the row is read, and its place is added."""
    gate = gate_on(database)
    history = make_history(6, commits=3, merges=False)
    repo = await pushed(gate, history)
    await database.execute("DELETE FROM commit_graph")
    await database.execute(
        "UPDATE commits SET record = NULL, snapshot_id = 'sha256:' || snapshot_id,"
        " parent_ids = ARRAY(SELECT 'sha256:' || unnest(parent_ids))"
    )
    child = history.commit(
        {**history.head.manifest, "x": history.content(b"x")}, parents=[history.head]
    )
    bundle = history.bundle([child])
    bundle["objects"] = history.objects(history.introduced(child))
    await gate.push(repo, bundle)
    rows = await database.fetch("SELECT commit_id, generation FROM commit_graph")
    assert {row["commit_id"]: row["generation"] for row in rows} == {
        made.commit_id: made.generation for made in history.commits.values()
    }


async def test_an_empty_manifest_and_odd_texts_are_kept(database: Database) -> None:
    gate = gate_on(database)
    history = History()
    message = "λ — 'quoted' {a,b} \\ \" NULL :name %s\n\U0001f600"
    time = "2026-01-31T12:00:00.123456789-03:30"
    made = history.commit({}, message=message, committed_at=time, author=None, extra=[1, None])
    repo = await gate.repo()
    await gate.push(repo, history.bundle())
    (row,) = await database.fetch("SELECT message, author, record FROM commits")
    assert tuple(row) == (message, "", made.packed)


async def test_new_commits_beside_a_named_head_are_kept_without_an_event(
    database: Database,
) -> None:
    gate = gate_on(database)
    history = make_history(7, commits=3, merges=False)
    repo = await pushed(gate, history)
    head = history.head.commit_id
    history.commit(history.head.manifest, parents=[history.head])
    result = await gate.push(repo, {**history.bundle(), "branch_heads": {"main": head}})
    assert result.remote_head == await gate.head(repo) == head
    assert await gate.count("commits") == 4
    assert await gate.events(repo) == ["repo.created", "repo.pushed"]


async def test_a_snapshot_that_no_commit_names_is_kept_too(database: Database) -> None:
    gate = gate_on(database)
    history = make_history(9, commits=2, merges=False)
    alone = make_history(10, commits=1)
    history.contents |= alone.contents
    bundle = history.bundle(with_objects=True)
    bundle["snapshots"] += alone.bundle()["snapshots"]
    bundle["objects"] = history.objects()
    repo = await gate.repo()
    await gate.push(repo, bundle)
    assert await gate.count("snapshot_refs") == 3

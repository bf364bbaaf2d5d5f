import asyncio

import pytest

from gateway.errors import Incomplete, RepoMissing
from gateway.packs.repos import branch_heads, default_branch
from leases.database import Database
from tests.integration.pushing import CALLER, gate_on


async def test_a_repo_is_made_once_also_by_racing_callers(database: Database) -> None:
    gate = gate_on(database)
    made = await asyncio.gather(*(gate.repo() for _ in range(6)))
    assert len({repo.repo_id for repo in made}) == 1
    assert await gate.count("repos") == 1
    assert await gate.events(made[0]) == ["repo.created"]
    assert made[0] == await gate.repos.find(owner="ada", slug="demo")


async def test_names_are_told_apart_by_owner_and_slug(database: Database) -> None:
    gate = gate_on(database)
    mine = await gate.repo()
    theirs = await gate.repos.ensure(owner="bob", slug="demo", visibility="private", caller=CALLER)
    assert mine.repo_id != theirs.repo_id
    assert (mine.visibility, theirs.visibility) == ("public", "private")
    assert await gate.repos.find(owner="bob", slug="other") is None


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a b", "-a", "a.git", "a\0", "x" * 101, "ä"]
)
async def test_what_cannot_stand_in_an_address_is_no_name(database: Database, name: str) -> None:
    gate = gate_on(database)
    for owner, slug in ((name, "demo"), ("ada", name)):
        with pytest.raises(Incomplete):
            await gate.repos.ensure(owner=owner, slug=slug, visibility="public", caller=CALLER)
    assert await gate.count("repos") == 0


async def test_a_deleted_repo_is_nowhere(database: Database) -> None:
    gate = gate_on(database)
    repo = await gate.repo()
    await database.execute("UPDATE repos SET deleted_at = now()")
    assert await gate.repos.find(owner="ada", slug="demo") is None
    with pytest.raises(RepoMissing):
        await gate.repo()
    assert await gate.repos.find_by_id(repo.repo_id) is None


async def test_refs_show_no_branch_without_a_head(database: Database) -> None:
    gate = gate_on(database)
    repo = await gate.repo()
    await database.execute(
        "INSERT INTO branches VALUES ($1, 'a', NULL), ($1, 'b', ''), ($1, 'd', $2), ($1, 'c', $2)",
        repo.repo_id,
        "1" * 64,
    )
    heads = await branch_heads(database, repo.repo_id)
    assert await gate.repos.find_by_id(repo.repo_id) == repo
    assert heads == {"c": "1" * 64, "d": "1" * 64}
    found = await gate.repos.find_heads(owner="ada", slug="demo")
    assert found is not None
    assert (found.repo, list(found.heads.items())) == (repo, list(heads.items()))
    assert default_branch(repo, heads) == "c", "main has no head here"
    assert default_branch(repo, {**heads, "main": "2" * 64}) == "main"
    assert default_branch(repo, {}) == "main"


async def test_a_repo_without_branches_has_no_heads_and_an_absent_one_is_none(
    database: Database,
) -> None:
    gate = gate_on(database)
    repo = await gate.repo()
    assert await gate.repos.find_heads(owner="ada", slug="demo") == (repo, {})
    assert await gate.repos.find_heads(owner="ada", slug="other") is None
    assert await gate.repos.find_heads(owner="-", slug="demo") is None
    await database.execute("UPDATE repos SET deleted_at = now()")
    assert await gate.repos.find_heads(owner="ada", slug="demo") is None


@pytest.mark.parametrize("owner", ["v1", "blobs", "V1"])
async def test_an_owner_cannot_take_an_address_of_ours(database: Database, owner: str) -> None:
    """A repo of that owner would be hidden behind the fixed routes."""
    gate = gate_on(database)
    with pytest.raises(Incomplete):
        await gate.repos.ensure(owner=owner, slug="demo", visibility="public", caller=CALLER)

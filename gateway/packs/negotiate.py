"""Which of a client's commits are known here, and whether it has named enough of them.

A client that pulls sends what it has in rounds, in no order worth knowing, until it is told that it
may fetch. Nothing is kept between the rounds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from gateway.packs.closure import Node
from gateway.packs.commit_rows import ancestry
from gateway.packs.known import known_commits
from gateway.packs.lacking import Question, bare_ids, check_wanted, is_text
from gateway.packs.transaction import Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Negotiation:
    """The answer to one round, in bare ids.

    `ready`: fetching with `ack` as have brings little that the client has already, or there is
    nothing more to say. `common_base`: the newest of `ack` that is known to lie below a want.
    """

    ack: Sequence[str]
    common_base: str | None
    ready: bool


async def negotiate(
    reader: Reader, repo_id: str, *, want: Sequence[str], have: Sequence[str], commits_max: int
) -> Negotiation:
    """One round. Looks at no more than `commits_max` commits below the wants.

    Errors: UnknownCommit (404) with the wanted ids that the repo does not have.
    """
    await check_wanted(reader, Question(repo_id=repo_id, want=want, have=()))
    wanted = bare_ids(want)
    offered = [commit_id for commit_id in bare_ids(have) if is_text(commit_id)]
    known = await known_commits(reader, repo_id, offered)
    ack = [commit_id for commit_id in offered if commit_id in known]
    if not have or not wanted:
        return Negotiation(ack=ack, common_base=None, ready=True)
    if not ack:
        return Negotiation(ack=ack, common_base=None, ready=False)
    near = await ancestry(reader, repo_id, wanted, count_max=len(wanted) + commits_max)
    met, complete = _walked(near, wanted, fence=frozenset(ack))
    base = max(met, key=lambda one: (near[one].generation, one), default=None)
    return Negotiation(ack=ack, common_base=base, ready=bool(met) and complete)


def _walked(
    near: Mapping[str, Node], wanted: Collection[str], *, fence: frozenset[str]
) -> tuple[set[str], bool]:
    """Which commits of the fence are met on the way down from the wants, and whether every way
    ends at the fence or at a root before it leaves what is `near`.
    """
    met: set[str] = set()
    complete = True
    seen = set(wanted)
    waiting = list(wanted)
    while waiting:
        commit_id = waiting.pop()
        node = near.get(commit_id)
        if node is None:
            complete = False
        elif commit_id in fence:
            met.add(commit_id)
        else:
            waiting += [parent for parent in node.parents if parent not in seen]
            seen.update(node.parents)
    return met, complete

"""The cache keys of clones, remembered: a hot clone does not walk the whole history at every hit.

Without haves a key depends on the wants and their ancestors alone, and a commit never changes its
ancestors. So such a key holds for as long as the repo has the wants, which is checked each time.
"""

from __future__ import annotations

from collections import OrderedDict

from gateway.packs.lacking import Question, bare_ids
from gateway.wire.ids import IdForm

_KEYS_KEPT_MAX = 1000
_WANTS_MAX = 100  # More heads than that are rare, and would make the memory of it large.

Name = tuple[str, frozenset[str], str, str, IdForm]


class CloneKeys:
    """The most recently used keys of fetches without haves."""

    def __init__(self) -> None:
        self._keys: OrderedDict[Name, str] = OrderedDict()

    def get(self, question: Question, *, encoding: str, snapshots: str, form: IdForm) -> str | None:
        """The key, if it is remembered."""
        name = _name(question, encoding, snapshots, form)
        if name is None or name not in self._keys:
            return None
        self._keys.move_to_end(name)
        return self._keys[name]

    def keep(
        self, key: str, question: Question, *, encoding: str, snapshots: str, form: IdForm
    ) -> None:
        """Remember a key."""
        name = _name(question, encoding, snapshots, form)
        if name is not None:
            self._keys[name] = key
            if len(self._keys) > _KEYS_KEPT_MAX:
                self._keys.popitem(last=False)


def _name(question: Question, encoding: str, snapshots: str, form: IdForm) -> Name | None:
    if question.have or not 0 < len(question.want) <= _WANTS_MAX:
        return None
    return question.repo_id, frozenset(bare_ids(question.want)), encoding, snapshots, form

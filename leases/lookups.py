"""Look leases up, joined with everybody else's questions.

A fetch asks for its lease twice, and a question costs its connection, its statement and two
changes of process, whether it is about one lease or about a hundred. So one task a process joins
what callers want to know into one statement, as often as the last answer has come back: no timer,
no waiting for company, as with appends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from datetime import datetime

from leases.errors import DatabaseUnavailable
from leases.ledger import Ledger
from leases.model import Lease

# As many as an append takes at once.
_LEASES_PER_CALL_MAX = 1000
# So many may wait for their turn; more means that the database does not keep up.
_WAITING_MAX = 50_000
_STOPPING = "The gateway is stopping; try again shortly."

# The lease as it stands, if there is one, and the database's time when it was read.
Found = tuple[Lease | None, datetime]


@dataclass(frozen=True, slots=True)
class _Question:
    mpack_id: str
    answer: asyncio.Future[Found]


class Lookups:
    """What leases are like now.

    `run()` must be running for `load` to make progress; the owner's task group holds it.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger.held()
        self._waiting: deque[_Question] = deque()
        self._wake = asyncio.Event()
        self._ended = False

    async def load(self, mpack_id: str) -> Found:
        """The lease as it stands, read after this call, and the database's time of the reading.

        Errors: DatabaseUnavailable.
        """
        if self._ended:
            raise DatabaseUnavailable(_STOPPING)
        if len(self._waiting) >= _WAITING_MAX:
            raise DatabaseUnavailable("Too many wait for the database; try again shortly.")
        answer: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Question(mpack_id, answer))
        self._wake.set()
        return await answer

    async def run(self) -> None:
        """Join and ask, for as long as the process lives."""
        asked: list[_Question] = []
        try:
            while True:
                await self._wake.wait()
                asked = self._take()
                if asked:
                    await self._ask(asked)
                else:
                    self._wake.clear()
        finally:
            self._ended = True
            for question in (*asked, *self._waiting):
                _fail(question, DatabaseUnavailable(_STOPPING))
            await self._ledger.close()

    def _take(self) -> list[_Question]:
        asked: list[_Question] = []
        while self._waiting and len(asked) < _LEASES_PER_CALL_MAX:
            question = self._waiting.popleft()
            if not question.answer.done():
                asked.append(question)
        return asked

    async def _ask(self, asked: list[_Question]) -> None:
        try:
            leases, now = await self._ledger.leases([question.mpack_id for question in asked])
        except DatabaseUnavailable as failure:
            for question in asked:
                _fail(question, failure)
            return
        except Exception as error:  # noqa: BLE001  a question that cannot be asked is its caller's
            if len(asked) == 1:
                _fail(asked[0], error)
            else:
                for question in asked:
                    await self._ask([question])
            return
        for question in asked:
            if not question.answer.done():
                question.answer.set_result((leases.get(question.mpack_id), now))


def _fail(question: _Question, error: BaseException) -> None:
    if not question.answer.done():
        question.answer.set_exception(error)

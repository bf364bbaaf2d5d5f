"""Callers of this process who ask for the same at once: one asks, for all of them.

Nobody is given an answer that was on its way before he came (others may have changed what he asks
about in between, himself among them), unless it is one that cannot change: then `lasting` says so.
A crowd therefore asks twice, whatever its size. An error is told to who met it; the others then ask
for themselves. Who hangs up while asking leaves it to the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class _Asking(Generic[T]):
    """Somebody asks; `number` says when it began, `failed` that there is no answer to share."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.ended = asyncio.Event()
        self.answers: list[T] = []
        self.failed = False


class Joined(Generic[T]):
    """What is being asked now, by whatever makes two questions the same."""

    def __init__(self) -> None:
        self._asking: dict[Hashable, _Asking[T]] = {}
        self._begun = 0

    async def ask(
        self, same: Hashable, ask: Callable[[], Awaitable[T]], *, lasting: bool = False
    ) -> T:
        """The answer, of `ask` or of somebody else's.

        Errors: those of `ask`.
        """
        came = self._begun
        while (asking := self._asking.get(same)) is not None:
            await asking.ended.wait()
            if asking.answers and (lasting or asking.number > came):
                return asking.answers[0]
            if asking.failed:
                return await ask()
        return await self._ask(same, ask)

    async def _ask(self, same: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        self._begun += 1
        asking = self._asking[same] = _Asking[T](self._begun)
        try:
            answer = await ask()
        except Exception:
            asking.failed = True
            raise
        else:
            asking.answers.append(answer)
            return answer
        finally:
            del self._asking[same]
            asking.ended.set()

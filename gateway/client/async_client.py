"""The same client for asyncio programs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar

import httpx2

from gateway.client import conversations, download, push
from gateway.client.exchange import Address, Call, Conversation, Pause
from gateway.client.library import arguments, lost_because, options
from gateway.client.transport import Connection
from leases.clock import SystemClock
from leases.ports import Clock

T = TypeVar("T")


class AsyncClient:
    """One repository on one gateway; every method is `gateway.client.Client`'s, to be awaited."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_seconds: float = 60,
        clock: Clock | None = None,
    ) -> None:
        self._connection = Connection(url, token=token, timeout_seconds=timeout_seconds)
        self._address = Address(self._connection.url)
        self._http = httpx2.AsyncClient(**options(self._connection))
        self._clock = clock or SystemClock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def refs(self) -> conversations.Refs:
        """The heads of the repository."""
        return await self._run(conversations.refs(self._address))

    async def filter_objects(self, object_ids: Sequence[str]) -> list[str]:
        """The ids of these that the repository lacks."""
        return await self._run(conversations.filter_objects(self._address, object_ids))

    async def negotiate(self, want: Sequence[str], have: Sequence[str]) -> conversations.Negotiated:
        """One round of finding out what both sides know."""
        return await self._run(conversations.negotiate(self._address, want, have))

    async def push_objects(self, objects: Mapping[str, bytes]) -> int:
        """Send objects by their ids, in chunks; how many the gateway had not known."""
        return await self._run(push.send_objects(self._address, objects))

    async def push(
        self,
        history: push.History,
        *,
        branch: str,
        force: bool = False,
        progress: Callable[[push.Progress], None] | None = None,
    ) -> push.Pushed:
        """Send what the repository lacks of this history and move the branch to its head."""
        return await self._run(
            push.push(self._address, history, branch=branch, force=force, progress=progress)
        )

    async def fetch_mpack(
        self,
        want: Iterable[str],
        have: Iterable[str] = (),
        *,
        ttl_seconds: float | None = None,
        encoding: str | None = None,
        snapshots: str | None = None,
    ) -> conversations.MpackAnswer:
        """Ask for a pack of what `want` reaches and `have` does not."""
        wish = conversations.Wish(
            want=tuple(want),
            have=tuple(have),
            ttl_seconds=ttl_seconds,
            encoding=encoding,
            snapshots=snapshots,
        )
        return await self._run(conversations.fetch_mpack(self._address, wish))

    async def download(
        self,
        answer: conversations.MpackAnswer,
        path: str | os.PathLike[str] | None = None,
        *,
        pack_bytes_max: int = download.PACK_BYTES_MAX,
    ) -> download.Downloaded:
        """Bring the pack to this path, or to a temporary file."""
        return await self._run(
            download.download(self._address, answer, path, pack_bytes_max=pack_bytes_max)
        )

    async def _run(self, conversation: Conversation[T]) -> T:
        try:
            effect = next(conversation)
            while True:
                if isinstance(effect, Pause):
                    await self._clock.sleep(effect.seconds)
                else:
                    await self._carry_out_all(effect)
                effect = next(conversation)
        except StopIteration as stop:
            value: T = stop.value
            return value
        finally:
            conversation.close()

    async def _carry_out_all(self, calls: Sequence[Call]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for call in calls:
                    group.create_task(self._carry_out(call))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors

    async def _carry_out(self, call: Call) -> None:
        try:
            async with self._http.stream(**arguments(self._connection.request(call))) as response:
                call.sink.begin(response.status_code, response.headers)
                # As it arrives: whatever waited for a full chunk would be lost with a cut.
                async for chunk in response.aiter_raw():
                    call.sink.feed(chunk)
        except httpx2.TransportError as error:
            call.sink.lost(lost_because(error))

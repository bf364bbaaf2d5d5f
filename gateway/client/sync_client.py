"""The client for ordinary programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx2

from gateway.client import conversations, download, push
from gateway.client.exchange import CALLS_AT_ONCE_MAX, Address, Call, Conversation, Pause
from gateway.client.transport import Connection, lost_because

T = TypeVar("T")


class Client:
    """One repository on one gateway, `http://host/owner/repo`, as a Muse remote names it.

    Effects: HTTP. Safe to use from several threads; close it, or use it as a context manager.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout_seconds: float = 60) -> None:
        self._connection = Connection(url, token=token, timeout_seconds=timeout_seconds)
        self._address = Address(self._connection.url)
        self._http = httpx2.Client(**self._connection.options())
        self._pool = ThreadPoolExecutor(CALLS_AT_ONCE_MAX, thread_name_prefix="mpack-client")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._pool.shutdown(cancel_futures=True)
        self._http.close()

    def refs(self) -> conversations.Refs:
        """The heads of the repository."""
        return self._run(conversations.refs(self._address))

    def filter_objects(self, object_ids: Sequence[str]) -> list[str]:
        """The ids of these that the repository lacks."""
        return self._run(conversations.filter_objects(self._address, object_ids))

    def negotiate(self, want: Sequence[str], have: Sequence[str]) -> conversations.Negotiated:
        """One round of finding out what both sides know."""
        return self._run(conversations.negotiate(self._address, want, have))

    def push_objects(self, objects: Mapping[str, bytes]) -> int:
        """Send objects by their ids, in chunks; how many the gateway had not known."""
        return self._run(push.send_objects(self._address, objects))

    def push(
        self,
        history: push.History,
        *,
        branch: str,
        force: bool = False,
        progress: Callable[[push.Progress], None] | None = None,
    ) -> push.Pushed:
        """Send what the repository lacks of this history and move the branch to its head."""
        return self._run(
            push.push(self._address, history, branch=branch, force=force, progress=progress)
        )

    def fetch_mpack(
        self,
        want: Iterable[str],
        have: Iterable[str] = (),
        *,
        ttl_seconds: float | None = None,
        encoding: str | None = None,
        snapshots: str | None = None,
    ) -> conversations.MpackAnswer:
        """Ask for a pack of what `want` reaches and `have` does not.

        Shapes:  encoding: "raw" or "zstd"; snapshots: "whole", or "delta" for a pack in which
                 they are changes on each other. `unpack` reads all of them.
        """
        wish = conversations.Wish(
            want=tuple(want),
            have=tuple(have),
            ttl_seconds=ttl_seconds,
            encoding=encoding,
            snapshots=snapshots,
        )
        return self._run(conversations.fetch_mpack(self._address, wish))

    def download(
        self,
        answer: conversations.MpackAnswer,
        path: Path | None = None,
        *,
        pack_bytes_max: int = download.PACK_BYTES_MAX,
    ) -> download.Downloaded:
        """Bring the pack to this path, or to a temporary file."""
        return self._run(
            download.download(self._address, answer, path, pack_bytes_max=pack_bytes_max)
        )

    def _run(self, conversation: Conversation[T]) -> T:
        try:
            effect = next(conversation)
            while True:
                if isinstance(effect, Pause):
                    time.sleep(effect.seconds)
                elif len(effect) == 1:
                    self._carry_out(effect[0])
                else:
                    list(self._pool.map(self._carry_out, effect))
                effect = next(conversation)
        except StopIteration as stop:
            value: T = stop.value
            return value
        finally:
            conversation.close()

    def _carry_out(self, call: Call) -> None:
        try:
            with self._http.stream(**self._connection.request(call)) as response:
                call.sink.begin(response.status_code, response.headers)
                # As it arrives: whatever waited for a full chunk would be lost with a cut.
                for chunk in response.iter_raw():
                    call.sink.feed(chunk)
        except httpx2.TransportError as error:
            call.sink.lost(lost_because(error))

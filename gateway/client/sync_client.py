"""The client for ordinary programs."""

from __future__ import annotations

import os
import time
from _thread import allocate_lock
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from gateway.client import conversations, download
from gateway.client.exchange import CALLS_AT_ONCE_MAX, Address, Call, Conversation, Pause
from gateway.client.plain_http import PlainHttp
from gateway.client.transport import Connection

# What a clone does not need is loaded when it is called for: a clone is over sooner than it loads.
if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from gateway.client import push
    from gateway.client.library import LibraryHttp

T = TypeVar("T")


class Client:
    """One repository on one gateway, `http://host/owner/repo`, as a Muse remote names it.

    Effects: HTTP. Safe to use from several threads; close it, or use it as a context manager.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout_seconds: float = 60) -> None:
        self._connection = Connection(url, token=token, timeout_seconds=timeout_seconds)
        self._address = Address(self._connection.url)
        self._plain = PlainHttp(timeout_seconds=timeout_seconds)
        self._lock = allocate_lock()
        self._loaded_library: LibraryHttp | None = None
        self._loaded_pool: ThreadPoolExecutor | None = None

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
        if self._loaded_pool is not None:
            self._loaded_pool.shutdown(cancel_futures=True)
        if self._loaded_library is not None:
            self._loaded_library.close()
        self._plain.close()

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
        from gateway.client import push

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
        from gateway.client import push

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
        path: str | os.PathLike[str] | None = None,
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
                    list(self._pool().map(self._carry_out, effect))
                effect = next(conversation)
        except StopIteration as stop:
            value: T = stop.value
            return value
        finally:
            conversation.close()

    def _carry_out(self, call: Call) -> None:
        request = self._connection.request(call)
        way = self._plain if self._plain.takes(request.url) else self._library()
        way.carry_out(request, call.sink)

    def _pool(self) -> ThreadPoolExecutor:
        from concurrent.futures import ThreadPoolExecutor

        with self._lock:
            if self._loaded_pool is None:
                self._loaded_pool = ThreadPoolExecutor(
                    CALLS_AT_ONCE_MAX, thread_name_prefix="mpack-client"
                )
            return self._loaded_pool

    def _library(self) -> LibraryHttp:
        from gateway.client.library import LibraryHttp

        with self._lock:
            if self._loaded_library is None:
                self._loaded_library = LibraryHttp(self._connection)
            return self._loaded_library

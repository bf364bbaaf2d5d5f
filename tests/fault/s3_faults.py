"""What goes wrong with a real S3, as tools: each is a fault for `tests.s3_proxy.S3Proxy`.

    proxy.fault = slow_down                   every request
    proxy.fault = on("PUT", lost_answer)      some of them; the others, signed URLs too, go through

"Before" and "after" are about the server: what failed before it has not been done, what failed
after it has, although nobody heard. A server that is frozen (SIGSTOP) is `tests.rgw.server()`'s
own `freeze` and `thaw`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence

from tests.s3_proxy import Fault, PassOn, Request, answer

_HEAD_END = b"\r\n\r\n"
_KEY = re.compile(rb"<Key>([^<]*)</Key>")


async def slow_down(_request: Request, _pass_on: PassOn) -> bytes | None:
    """503 SlowDown; nothing was done."""
    return answer(503, "SlowDown")


async def error_after_success(_request: Request, pass_on: PassOn) -> bytes | None:
    """500, and all was done."""
    await pass_on()
    return answer(500, "InternalError")


async def reset_before(_request: Request, _pass_on: PassOn) -> bytes | None:
    """The connection is reset; nothing was done."""
    return None


async def reset_after(_request: Request, pass_on: PassOn) -> bytes | None:
    """The connection is reset, and all was done."""
    await pass_on()
    return None


async def lost_answer(_request: Request, pass_on: PassOn) -> bytes | None:
    """All was done, and nobody ever hears of it."""
    await pass_on()
    return await _for_ever()


async def black_hole(_request: Request, _pass_on: PassOn) -> bytes | None:
    """Nothing is done, and nothing is heard."""
    return await _for_ever()


async def truncated_body(_request: Request, pass_on: PassOn) -> bytes | None:
    """The answer breaks off in the midst of its body; one without a body, in its head."""
    told = await pass_on()
    end = told.index(_HEAD_END) + len(_HEAD_END)
    return told[: (end + len(told)) // 2] if len(told) > end else told[: end // 2]


async def error_inside_200(_request: Request, _pass_on: PassOn) -> bytes | None:
    """200, with an error as its body, as S3 does when it finds out after it has begun to answer."""
    refusal = answer(200, "InternalError")
    return refusal.replace(b"200 No", b"200 OK", 1)


def partial_delete(fails: Callable[[str], bool], delete: Callable[[Sequence[str]], None]) -> Fault:
    """DeleteObjects answers 200 and lists these keys as failed; the others `delete` removes.

    (The request itself is signed with its body, so a smaller one cannot be passed on.)
    """

    async def fault(request: Request, pass_on: PassOn) -> bytes | None:
        if not is_bulk_delete(request):
            return await pass_on()
        keys = keys_of(request)
        gone = [key for key in keys if not fails(key)]
        await asyncio.to_thread(delete, gone)
        told = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in gone)
        told += "".join(
            f"<Error><Key>{key}</Key><Code>InternalError</Code></Error>"
            for key in keys
            if fails(key)
        )
        body = f"<DeleteResult>{told}</DeleteResult>".encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        return head.encode() + body

    return fault


def on(methods: str, fault: Fault) -> Fault:
    """The fault for these methods alone (`"PUT"`, `"POST DELETE"`)."""

    async def some(request: Request, pass_on: PassOn) -> bytes | None:
        if request.method in methods.split():
            return await fault(request, pass_on)
        return await pass_on()

    return some


def only_if(applies: Callable[[Request], bool], fault: Fault) -> Fault:
    """The fault for the requests that this is true of."""

    async def some(request: Request, pass_on: PassOn) -> bytes | None:
        return await (fault(request, pass_on) if applies(request) else pass_on())

    return some


class Held:
    """Holds requests back until `release()`, whether or not their senders are still there."""

    def __init__(self) -> None:
        self.count = 0
        self._released = asyncio.Event()
        self._arrived = asyncio.Condition()

    async def __call__(self, _request: Request, pass_on: PassOn) -> bytes | None:
        async with self._arrived:
            self.count += 1
            self._arrived.notify_all()
        await self._released.wait()
        return await pass_on()

    async def has(self, count: int) -> None:
        """Wait until so many are held."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: self.count >= count)

    def release(self) -> None:
        """Let them reach the server."""
        self._released.set()


def is_bulk_delete(request: Request) -> bool:
    """Whether this is a DeleteObjects."""
    return request.method == "POST" and request.query.startswith("delete")


def keys_of(request: Request) -> list[str]:
    """The keys of a DeleteObjects."""
    return [key.decode() for key in _KEY.findall(request.body)]


async def _for_ever() -> bytes:
    await asyncio.Event().wait()
    raise AssertionError


# Every fault that may befall any request, by name.
FAULTS: dict[str, Fault] = {
    "slow down": slow_down,
    "error after success": error_after_success,
    "reset before": reset_before,
    "reset after": reset_after,
    "lost answer": lost_answer,
    "black hole": black_hole,
    "truncated body": truncated_body,
    "error inside a 200": error_inside_200,
}

"""Requests over bare connections: for callers who share the processors with what they measure.

An HTTP library takes as long for a request as the gateway does. Here a request is made beforehand,
goes out on a connection of its own, and of the answer only the status and the length are read.
"""

from __future__ import annotations

import asyncio

_HEAD_BYTES_MAX = 64 * 1024


def request_bytes(method: str, path: str, body: bytes = b"") -> bytes:
    """One request, as the Muse client makes it."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: gateway",
        "Accept: application/x-msgpack, application/json",
        "Accept-Encoding: identity",
        "Connection: close",
    ]
    if body:
        lines += ["Content-Type: application/x-msgpack", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


async def ask(port: int, request: bytes) -> bytes:
    """The body of the answer, which is 200, from this machine's port."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_HEAD_BYTES_MAX)
    try:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200 "), head[:200]
        _, _, length = head.partition(b"\r\ncontent-length: ")
        return await reader.readexactly(int(length.partition(b"\r\n")[0]))
    finally:
        writer.close()

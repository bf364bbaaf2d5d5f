"""The Muse CLI as the gateway sees it: the bytes of its requests, over a socket of its own each.

Headers, their order, a new connection for every call, no token on clone, the form type on an
upload: as recorded from it. Nothing of the gateway's own client is used here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgpack

from tests.factories import History, MadeCommit

LARGE_BYTES = 65_536
CHUNK_OBJECTS = 400
_PUTS_AT_ONCE = 8
_PUSHES_AT_ONCE = 4
_ROUND = 64
ANSWER_BYTES_MAX = 67_108_864


@dataclass(frozen=True, slots=True)
class Heard:
    """An answer as it came."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def body(self) -> dict[str, Any]:
        """A good answer; the client reads msgpack, whatever the type says."""
        assert 200 <= self.status < 300, f"HTTP {self.status}: {self.content[:400]!r}"
        assert len(self.content) <= ANSWER_BYTES_MAX
        told: dict[str, Any] = msgpack.unpackb(self.content)
        return told


async def heard(
    method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes | None
) -> Heard:
    """One request on a new connection, read to its end."""
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    lines = [f"{method} {target} HTTP/1.1", "Accept-Encoding: identity"]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    lines.append(f"Host: {parts.netloc}")
    lines += [f"{name}: {value}" for name, value in headers]
    lines += ["Connection: close", "", ""]
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
    try:
        writer.write("\r\n".join(lines).encode() + (body or b""))
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        told = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        assert "transfer-encoding" not in told or told["transfer-encoding"] == "chunked"
        content = await reader.read()
        if told.get("transfer-encoding") == "chunked":
            content = _unchunked(content)
    finally:
        writer.close()
    return Heard(int(head[0].split(" ")[1]), told, content)


def _unchunked(data: bytes) -> bytes:
    content = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        count = int(size.split(b";")[0], 16)
        content, data = content + data[:count], data[count + 2 :]
        if not count:
            break
    return content


@dataclass(slots=True, kw_only=True)
class Muse:
    """A working copy's owner; `url` is `http://host:port/{owner}/{repo}`."""

    url: str
    token: str | None = None

    async def call(
        self, method: str, path: str, body: object = None, *, as_json: bool = False
    ) -> Heard:
        """One of the protocol's calls."""
        headers = [("Accept", "application/x-msgpack, application/json")]
        content = None
        if body is not None:
            content = json.dumps(body).encode() if as_json else msgpack.packb(body)
            kind = "application/json" if as_json else "application/x-msgpack"
            headers.append(("Content-Type", kind))
        if self.token is not None:
            headers.append(("Authorization", f"Bearer {self.token}"))
        return await heard(method, self.url + path, headers, content)

    async def refs(self) -> dict[str, Any]:
        return (await self.call("GET", "/refs")).body

    async def upload(self, contents: Mapping[str, bytes]) -> list[str]:
        """Put large objects where presign says; those that it wants inline."""
        asked = {"object_ids": sorted(contents), "direction": "put"}
        told = (await self.call("POST", "/presign", asked)).body
        turns = asyncio.Semaphore(_PUTS_AT_ONCE)

        async def put(object_id: str, url: str) -> None:
            async with turns:
                form = [("Content-Type", "application/x-www-form-urlencoded")]
                answer = await heard("PUT", url, form, contents[object_id])
            assert 200 <= answer.status < 300, answer

        async with asyncio.TaskGroup() as tasks:
            for object_id, url in told["presigned"].items():
                tasks.create_task(put(object_id, url))
        inline: list[str] = told["inline"]
        return inline

    async def push(
        self,
        history: History,
        commits: Iterable[MadeCommit] | None = None,
        *,
        branch: str = "main",
        force: bool = False,
    ) -> Heard:
        """The whole of a push; the answer to its last call."""
        chosen = list(history.commits.values() if commits is None else commits)
        refs = await self.refs()
        assert refs["repo_id"]
        if refs["branch_heads"].get(branch) == chosen[-1].commit_id:
            return Heard(200, {}, msgpack.packb({"ok": True, "message": "up to date"}))
        ids = sorted({one for commit in chosen for one in commit.manifest.values()})
        missing = (await self.call("POST", "/filter-objects", {"object_ids": ids})).body["missing"]
        contents = {one: history.contents[one] for one in missing}
        large = {one: data for one, data in contents.items() if len(data) > LARGE_BYTES}
        inline = set(await self.upload(large)) if large else set()
        small = [one for one in contents if one not in large or one in inline]
        turns = asyncio.Semaphore(_PUSHES_AT_ONCE)

        async def send(part: Sequence[str]) -> None:
            objects = [{"object_id": one, "content": contents[one]} for one in part]
            async with turns:
                told = (await self.call("POST", "/push/objects", {"objects": objects})).body
            assert told["stored"] + told["skipped"] == len(part)

        async with asyncio.TaskGroup() as tasks:
            for start in range(0, len(small), CHUNK_OBJECTS):
                tasks.create_task(send(small[start : start + CHUNK_OBJECTS]))
        body = {"bundle": history.bundle(chosen), "branch": branch, "force": force}
        return await self.call("POST", "/push", body)

    async def clone(self) -> dict[str, Any]:
        """Never with a token; heads twice where two branches share one."""
        anybody = Muse(url=self.url)
        want = list((await anybody.refs())["branch_heads"].values())
        return (await anybody.call("POST", "/fetch", {"want": want, "have": []})).body

    async def pull(self, have: Sequence[str], *, branch: str = "main") -> dict[str, Any]:
        """Rounds of negotiation until the gateway is ready; the last round's answer counts."""
        head = (await self.refs())["branch_heads"][branch]
        ack: list[str] = []
        for start in range(0, max(1, len(have)), _ROUND):
            asked = {"want": [head], "have": have[start : start + _ROUND]}
            told = (await self.call("POST", "/negotiate", asked)).body
            ack = told["ack"]
            if told["ready"]:
                break
        return (await self.call("POST", "/fetch", {"want": [head], "have": ack})).body

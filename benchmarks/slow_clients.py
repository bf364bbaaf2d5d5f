"""500 clients that are too slow for one gateway, and what the others notice of them.

The command `serve` in a process of its own, with its usual limits (a head within 5 s, and 1 KiB a
second of a body or an answer). All slow clients connect at once, as many of each kind: a head that
comes line by line, a body byte by byte, a body that goes on byte by byte behind its refusal, and an
answer of 16 MiB of which next to nothing is read. They live in a process of their own, and the
state of their sockets tells when the gateway has let go of them; each is timed from its connecting
to that moment.

The others are four callers with a connection each, who ask for the refs of a repo and for a shared
pack of it again and again. The control, before it in the same run: the same callers alone.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import httpx2
import msgpack

from benchmarks.figures import Benchmark, Figure, Run, percentile
from benchmarks.load import Load, load
from benchmarks.place import CALLER, Home, Place, serving
from benchmarks.served import ServedGateway, admin_token
from benchmarks.synthetic import push_line
from benchmarks.usage import forget_memory_peak, memory_bytes, memory_bytes_peak
from gateway.wire.messages import PushObject
from tests.factories import History

_CLIENTS, _CLIENTS_QUICK = 500, 20
_SECONDS, _SECONDS_QUICK = 20.0, 5.0  # Twice what is allowed.
_QUICK = {"MPACK_SLOW_SECONDS": "0.5"}
_CALLERS = 4
_COMMITS = 20
_ANSWER_BYTES = 16 << 20  # More than the sockets' buffers hold.
_READ_BUFFER_BYTES = 64 * 1024
_START_SECONDS_MAX = 30.0
_LOOK_SECONDS = 0.05
_LOOKS_PER_PIECE = 10
_ESTABLISHED = 1  # As the first byte of Linux's `struct tcp_info` says it.


@dataclass(slots=True, kw_only=True)
class _Slow:
    """One slow client: what it sends at once, and what it sends or reads every half second."""

    start: bytes
    piece: bytes = b""
    socket: socket.socket
    began: float

    @classmethod
    def connect(cls, port: int, start: bytes, piece: bytes) -> _Slow:
        began = time.monotonic()
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _READ_BUFFER_BYTES)
        connection.settimeout(_START_SECONDS_MAX)
        connection.connect(("127.0.0.1", port))
        connection.sendall(start)
        connection.setblocking(False)
        return cls(start=start, piece=piece, socket=connection, began=began)

    def trickle(self) -> None:
        """A little more, one way or the other; a client of this kind does not mind a refusal."""
        try:
            if self.piece:
                self.socket.send(self.piece)
            else:
                self.socket.recv(1)
        except OSError:
            pass

    @property
    def connected(self) -> bool:
        """Whether neither side has ended it."""
        told = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        return told[0] == _ESTABLISHED


def _kinds(object_path: str, token: str) -> Sequence[tuple[bytes, bytes]]:
    """What each kind sends at once, and piece by piece."""
    body = b"Host: x\r\nContent-Type: application/x-msgpack\r\nContent-Length: 1000000\r\n"
    push = b"POST /bench/slow/push HTTP/1.1\r\n" + body
    return (
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n", b"X-A: b\r\n"),
        (push + f"Authorization: Bearer {token}\r\n\r\n".encode(), b"x"),
        (push + b"Authorization: Bearer wrong\r\n\r\n", b"x"),
        (f"GET {object_path} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), b""),
    )


async def _slow_clients(
    port: int, kinds: Sequence[tuple[bytes, bytes]], *, clients: int, seconds: float
) -> tuple[list[float], int]:
    """How long each was there, in seconds, and how many still were at the end."""
    left = [
        await asyncio.to_thread(_Slow.connect, port, *kinds[number % len(kinds)])
        for number in range(clients)
    ]
    everybody, lasted = list(left), []
    until = left[-1].began + seconds
    looks = 0
    while left and time.monotonic() < until:
        await asyncio.sleep(_LOOK_SECONDS)
        looks += 1
        stayed = []
        for client in left:
            if not client.connected:
                lasted.append(time.monotonic() - client.began)
                continue
            stayed.append(client)
            if looks % _LOOKS_PER_PIECE == 0:
                client.trickle()
        left = stayed
    lasted += [time.monotonic() - client.began for client in left]
    for client in everybody:
        client.socket.close()
    return lasted, len(left)


async def _prepare(home: Home) -> tuple[str, str]:
    """A repo with a short history and one large object: its head, and the object's path."""
    ids = await push_line(home, "slow", _COMMITS)
    history = History()
    object_id = history.content(bytes(_ANSWER_BYTES))
    async with serving(home, watch=False) as service:
        repo = await service.repos.ensure(
            owner="bench", slug="slow", visibility="public", caller=CALLER
        )
        objects = [PushObject(**entry) for entry in history.objects()]
        await service.segments.store(repo.repo_id, objects, CALLER)
    return ids[-1], f"/o/{object_id}?repo_id={repo.repo_id}"


async def _others(gateway: ServedGateway, head: str, seconds: float) -> Load:
    """Four callers, each with its own connection, for so long."""
    body = msgpack.packb({"want": [head], "have": []})
    async with AsyncExitStack() as stack:
        callers = [
            await stack.enter_async_context(
                httpx2.AsyncClient(base_url=gateway.url, timeout=60, trust_env=False)
            )
            for _ in range(_CALLERS)
        ]

        async def turn(caller: int) -> None:
            http = callers[caller]
            if next(turns) % 2:
                answer = await http.get("/bench/slow/refs")
            else:
                answer = await http.post("/bench/slow/fetch/mpack", content=body)
            assert answer.status_code == 200, answer.text[:200]

        turns = iter(range(10**9))
        for caller in range(2 * _CALLERS):
            await turn(caller % _CALLERS)
        return await load(_CALLERS, seconds, turn)


async def _run(place: Place) -> Run:
    clients = _CLIENTS_QUICK if place.quick else _CLIENTS
    seconds = _SECONDS_QUICK if place.quick else _SECONDS
    home = await place.home()
    token = await place.apart(admin_token, home)
    head, object_path = await place.apart(_prepare, home)
    gateway = ServedGateway.start(home, token=token, settings=_QUICK if place.quick else {})
    try:
        async with httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as http:
            await gateway.answers(http, seconds_max=_START_SECONDS_MAX)
        alone = await _others(gateway, head, seconds / 2)
        held = memory_bytes(gateway.process.pid)
        forget_memory_peak(gateway.process.pid)
        slow = asyncio.ensure_future(
            place.apart(
                _slow_clients,
                gateway.port,
                _kinds(object_path, token),
                clients=clients,
                seconds=seconds,
            )
        )
        beside = await _others(gateway, head, seconds / 2)
        lasted, never = await slow
        more = memory_bytes_peak(gateway.process.pid) - held
    finally:
        gateway.end()
    await place.drop(home)
    return {
        "clients": len(lasted),
        "never": never,
        "cut_p50_seconds": percentile(lasted, 50),
        "cut_max_seconds": max(lasted),
        "p50_ms": beside.percentile_ms(50),
        "p99_ms": beside.percentile_ms(99),
        "max_ms": beside.percentile_ms(100),
        "requests": len(beside.taken_ms),
        "control_p50_ms": alone.percentile_ms(50),
        "control_p99_ms": alone.percentile_ms(99),
        "p99_ratio": beside.percentile_ms(99) / alone.percentile_ms(99),
        "more_mib": more / 2**20,
    }


SLOW_CLIENTS = Benchmark(
    name="slow-clients",
    about="500 clients too slow with a head, a body or an answer, and what others notice",
    figures={
        "clients": Figure(label="slow clients"),
        "never": Figure(label="of them never cut", at_most=0, worst=True),
        "cut_p50_seconds": Figure(label="from connecting to being cut, p50", unit="s"),
        "cut_max_seconds": Figure(
            label="from connecting to being cut, the last", unit="s", at_most=10, worst=True
        ),
        "requests": Figure(label="others' requests meanwhile"),
        "p50_ms": Figure(label="others' requests, p50", unit="ms"),
        "p99_ms": Figure(label="others' requests, p99", unit="ms", at_most=100),
        "max_ms": Figure(label="others' requests, the slowest", unit="ms", worst=True),
        "control_p50_ms": Figure(label="control: without slow clients, p50", unit="ms"),
        "control_p99_ms": Figure(label="control: without slow clients, p99", unit="ms"),
        "p99_ratio": Figure(label="p99 to the control's", unit="times"),
        "more_mib": Figure(label="more memory meanwhile, the most", unit="MiB", worst=True),
    },
    run=_run,
)

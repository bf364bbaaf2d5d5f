"""What happens, in order; every sentence with a tick was checked when it was printed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gateway.client import Client, MpackAnswer, checkout, unpack
from gateway.demo.process import GatewayProcess
from gateway.demo.report import Report, seconds, size
from gateway.demo.sources import Source, differences, files_by_git
from gateway.demo.store import DemoStore
from gateway.demo.watch import Watch
from leases.clock import SystemClock

OWNER_AND_REPO = "demo/history"
BRANCH = "main"
PROMISE_MS = 1000
_OUTAGE_TTL_SECONDS_MAX = 3.0
_OVERDUE_SECONDS = 1.0
_RECORDED_SECONDS_MAX = 15.0
_DEAD = frozenset({403, 404, 410})


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What the story plays with."""

    report: Report
    gateway: GatewayProcess
    store: DemoStore
    source: Source
    scratch: Path
    ttl_seconds: float


def tell(stage: Stage) -> None:
    """The whole story; the report holds what was not true."""
    _start(stage)
    with Client(f"{stage.gateway.url}/{OWNER_AND_REPO}", token=stage.gateway.token) as client:
        _push(stage, client)
        answers = [*_life(stage, client), _outage(stage, client)]
    _trail(stage, answers)


def _start(stage: Stage) -> None:
    stage.report.chapter(stage.store.title)
    took = stage.gateway.start()
    stage.report.check(f"it serves {stage.gateway.url}", true=True, figure=f"after {seconds(took)}")
    stage.report.note(f"everything is in {stage.gateway.folder}")
    stage.report.note(f"it logs to {stage.gateway.log_file}")


def _push(stage: Stage, client: Client) -> None:
    report, history = stage.report, stage.source.history
    report.chapter("A Git history goes in over HTTP")
    if stage.source.why_made is not None:
        report.note(f"{stage.source.why_made}: a small repository made on the spot is shown")
    report.note(f"{stage.source.path} at {history.git_head[:12]}")
    began = time.monotonic()
    pushed = client.push(history, branch=BRANCH)
    took = time.monotonic() - began
    report.check(
        f"pushed {pushed.commits:,} commits and {pushed.objects:,} files' contents",
        pushed.commits == len(history.parents),
        f"{size(pushed.object_bytes)}, {seconds(took)}",
    )
    heads = client.refs().branch_heads
    report.check("the branch is where Git's head is", heads == {BRANCH: history.head})


def _life(stage: Stage, client: Client) -> list[MpackAnswer]:
    """Fetch, share, compare, expire; the answers, which are of one lease."""
    report, head = stage.report, stage.source.history.head
    report.chapter(f"It comes back as one pack, through a URL that lives {stage.ttl_seconds:g} s")
    began = time.monotonic()
    answer = client.fetch_mpack([head], ttl_seconds=stage.ttl_seconds, encoding="zstd")
    took = time.monotonic() - began
    assert answer.mpack_id is not None
    report.check("one pack, stored under a lease", bool(answer.mpack_url), seconds(took))
    report.note(f"mpack_id {answer.mpack_id}, {size(answer.size_bytes)} (zstd)")
    with client.download(answer, stage.scratch / "pack") as got:
        again = client.fetch_mpack([head], ttl_seconds=stage.ttl_seconds, encoding="zstd")
        lease = stage.gateway.lease(answer.mpack_id)
        key = lease["storage_key"]
        with Watch(lambda: stage.store.has(key)) as watch:
            report.check(
                "downloaded through its presigned URL, SHA-256 as promised",
                not got.fetched_anew,
                size(got.path.stat().st_size),
            )
            report.check(
                "asked again: the same pack, shared, not built anew",
                again.mpack_id == answer.mpack_id,
            )
            _compare(stage, got.path)
            _deadline(stage, watch, answers=[answer, again])
    return [answer, again]


def _compare(stage: Stage, pack_file: Path) -> None:
    report, history = stage.report, stage.source.history
    out = stage.scratch / "out"
    with unpack(pack_file) as pack:
        report.check(
            f"every id recomputed: {len(pack.commits):,} commits, {len(pack.snapshots):,} "
            f"snapshots, {len(pack.objects):,} objects",
            set(pack.commits) == set(history.parents),
        )
        checkout(pack, history.head, out)
    reader, files = files_by_git(stage.source.path, history.git_head)
    wrong = differences(out, files)
    total = sum(len(file.content) for file in files.values())
    report.check(
        f"its {len(files):,} files are, byte for byte, those that {reader} has",
        not wrong,
        size(total),
    )
    for line in wrong[:5]:
        report.note(line)


def _deadline(stage: Stage, watch: Watch, *, answers: list[MpackAnswer]) -> None:
    report, gateway = stage.report, stage.gateway
    mpack_id, url = answers[-1].mpack_id or "", answers[-1].mpack_url or ""
    report.chapter("The deadline")
    lease = gateway.lease(mpack_id)
    delete_at = _moment(lease["delete_at"])
    report.note(f"due at {_clock_time(delete_at)}, by the database's clock; waiting")
    nearly = _moment(answers[-1].expires_at) - timedelta(seconds=0.3)
    if _sleep_until(nearly):
        alive = gateway.status_of(url)
        report.check("shortly before its end the URL still works", alive == 200, f"HTTP {alive}")
    what, where = stage.store.blob, stage.store.place
    gone = watch.wait(delete_at + timedelta(seconds=10))
    lease = _reclaimed(gateway, mpack_id)
    if gone and watch.gone_at is not None and watch.last_seen_at is not None:
        late = _milliseconds(watch.gone_at - delete_at)
        report.check(f"the {what} was there until its deadline, not a moment less", late >= 0)
        report.check(
            f"the {what} is gone from the {where}, within {PROMISE_MS} ms",
            0 <= late <= PROMISE_MS,
            f"{late:.0f} ms after its deadline",
        )
    else:
        report.check(f"the {what} is gone from the {where}", true=False)
    report.check(
        "the lease table says so, too",
        lease["state"] == "reclaimed" and 0 <= (lease["lateness_ms"] or 0) <= PROMISE_MS,
        f"{lease['outcome']}, {lease['lateness_ms']} ms late",
    )
    statuses = [gateway.status_of(answer.mpack_url or "") for answer in answers]
    report.check(
        "both URLs are dead",
        _DEAD.issuperset(statuses),
        "HTTP " + ", ".join(map(str, statuses)),
    )


def _outage(stage: Stage, client: Client) -> MpackAnswer:
    """A lease falls due while nobody is there."""
    report, gateway = stage.report, stage.gateway
    report.chapter("The same with the gateway dead: kill -9, then a new start")
    ttl = min(stage.ttl_seconds, _OUTAGE_TTL_SECONDS_MAX)
    head = stage.source.history.head
    answer = client.fetch_mpack([head], ttl_seconds=ttl, encoding="zstd")
    assert answer.mpack_id is not None
    lease = gateway.lease(answer.mpack_id)
    key = lease["storage_key"]
    there = stage.store.has(key)
    report.check(f"a new pack, never an old id again, for {ttl:g} s", there)
    gateway.kill()
    delete_at = _moment(lease["delete_at"])
    _sleep_until(delete_at + timedelta(seconds=_OVERDUE_SECONDS))
    report.check(
        "killed; its deadline has passed, and nobody was there to delete the blob",
        stage.store.has(key),
        f"due for {seconds(_OVERDUE_SECONDS)}",
    )
    took = gateway.start()
    ready = time.monotonic()
    report.check("started again on what the crash left behind", true=True, figure=seconds(took))
    lease = _reclaimed(gateway, answer.mpack_id)
    recorded = time.monotonic() - ready
    event = lease["events"][-1]
    report.check(
        "the start-up sweep reclaimed 1 lease",
        event["type"] == "lease.reclaimed" and event["data"].get("trigger") == "start_up",
        f"{(lease['lateness_ms'] or 0) / 1000:.1f} s overdue",
    )
    report.check(
        "its blob is gone, its URL is dead",
        not stage.store.has(key) and gateway.status_of(answer.mpack_url or "") in _DEAD,
        f"at most {seconds(max(recorded, 0.001))} after it was ready",
    )
    return answer


def _secrets(stage: Stage, answers: list[MpackAnswer]) -> None:
    said = stage.gateway.log_file.read_text(errors="replace")
    secrets = [stage.gateway.token, *stage.store.secrets()]
    for answer in answers:
        query = parse_qs(urlsplit(answer.mpack_url or "").query)
        secrets += [text for name in query for text in query[name] if "signature" in name.lower()]
    told = [secret for secret in secrets if secret in said]
    stage.report.check("no token and no URL's signature is in the log file", not told)


def _trail(stage: Stage, answers: list[MpackAnswer]) -> None:
    report = stage.report
    report.chapter("The audit trail, as /v1/leases/{id} tells it")
    for mpack_id in dict.fromkeys(answer.mpack_id or "" for answer in answers):
        lease = stage.gateway.lease(mpack_id)
        report.note(mpack_id)
        report.table(_line(event) for event in lease["events"])
        ends = [event for event in lease["events"] if event["type"] == "lease.reclaimed"]
        report.check("reclaimed exactly once", len(ends) == 1)
    _verify(stage)
    _secrets(stage, answers)


def _verify(stage: Stage) -> None:
    verified = stage.gateway.run("audit", "verify", "--json")
    try:
        verdict = json.loads(verified.stdout)
    except ValueError:
        verdict = {}
        stage.report.note(verified.stderr.strip()[-200:])
    stage.report.check(
        "`mpack-gateway audit verify`: the hash chain holds, the table follows from it",
        verified.returncode == 0 and verdict.get("ok") is True,
        f"{verdict.get('events', 0)} events",
    )


def _line(event: Mapping[str, Any]) -> tuple[str, ...]:
    shown = []
    data = event["data"]
    for name in _DETAILS:
        value = data.get(name)
        if value is not None and not (name == "delete_at" and "expires_at" in data):
            short = _clock_time(_moment(value)) if name.endswith("_at") else str(value)
            shown.append(f"{name}={short}")
    return (
        f"#{event['position']}",
        _clock_time(_moment(event["recorded_at"])),
        event["type"],
        " ".join(shown),
    )


_DETAILS = ("expires_at", "delete_at", "size_bytes", "outcome", "trigger", "lateness_ms")


def _reclaimed(gateway: GatewayProcess, mpack_id: str) -> dict[str, Any]:
    """The lease as soon as its end is recorded, or as it is after a while."""
    deadline = time.monotonic() + _RECORDED_SECONDS_MAX
    while True:
        lease = gateway.lease(mpack_id)
        if lease["state"] == "reclaimed" or time.monotonic() > deadline:
            return lease
        time.sleep(0.02)


def _sleep_until(moment: datetime) -> bool:
    """Wait for a moment of the wall clock; whether it still lay ahead."""
    left = (moment - SystemClock().now()).total_seconds()
    if left <= 0:
        return False
    time.sleep(left)
    return True


def _moment(text: object) -> datetime:
    if not isinstance(text, str):
        raise TypeError("the gateway told no time")
    return datetime.fromisoformat(text)


def _milliseconds(duration: timedelta) -> float:
    return duration / timedelta(milliseconds=1)


def _clock_time(moment: datetime) -> str:
    return f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03}"

#!/usr/bin/env python3
"""Prove an exported log without the gateway, its database or any package: Python 3.9 is enough.

    python3 verify_export.py log.ndjson --log-id 2b9f... --head 1042:9c01...

The files are what `mpack-gateway events export` wrote, in order; a log in several files is proven
over all of them. Checked are: every event's hash, from the fields of its line and the hash before
it; that no position is missing; that each stream's versions follow each other; that time does not
run back; that no lease is reclaimed twice, or before its deadline. What the files alone cannot
tell, because whoever can write them can compute hashes, is told by what was kept elsewhere:

--log-id UUID         the log's id (`mpack-gateway stats`): the first event must follow from it
--after POSITION:HASH the event in front of the first line, for files that begin later
--manifest FILE       what `mpack-gateway events archive` wrote, with its files beside it; in order,
                      in front of the other files. May be given again
--head POSITION:HASH  an event that was published (`mpack-gateway audit verify`, the bucket's
                      `transient/.owner`); the log must have exactly it. May be given again

Exit code 0 when everything holds, 1 when something does not, 2 when it cannot be read.
This file repeats the rules (leases/chain.py) on purpose: an auditor can read all of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import struct
import sys
import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

Published = tuple[int, bytes]  # A position and its hash.

KEYS = {
    "position", "event_id", "stream", "version", "type", "schema_version", "data", "actor",
    "request_id", "recorded_at", "hash",
}  # fmt: skip
EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  Every time here is in UTC.
PROBLEMS_MAX = 100


class Unreadable(Exception):
    """The arguments or a file make no sense."""


class Verifier:
    """Takes the lines one after the other, and remembers what is wrong."""

    def __init__(
        self, log_id: uuid.UUID | None, after: Published | None, heads: Iterable[Published]
    ) -> None:
        self.events = 0
        self.first: int | None = None
        self.last: Published | None = None  # As they are stated.
        self.problems: list[str] = []
        self.problems_more = 0
        self._genesis = hashlib.sha256(log_id.bytes).digest() if log_id else None
        self._after = after
        self._heads = dict(heads)
        self._recorded_at = ""
        self._streams: dict[
            str, int
        ] = {}  # The last version, twice; one more once the lease is reclaimed.

    def complain(self, problem: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)
        else:
            self.problems_more += 1

    def take(self, line: str, place: str) -> None:
        """One line of a file; `place` names it where it cannot name itself."""
        try:
            event = parsed(line)
            position, stated = event["position"], bytes.fromhex(event["hash"])
            content = encoded(event)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            self.complain(f"{place} is no event: {error}")
            return
        self.events += 1
        self._check_place(position)
        previous = self._previous(position)
        if previous is not None and hashlib.sha256(previous + content).digest() != stated:
            self.complain(f"event {position}: its hash does not follow from what stands before it")
        if event["recorded_at"] < self._recorded_at:
            self.complain(f"event {position} was recorded before the event in front of it")
        if position in self._heads and self._heads[position] != stated:
            self.complain(f"event {position} is not the one that was published")
        self._check_stream(event)
        self._recorded_at = event["recorded_at"]
        self.last = (position, stated)

    def end(self) -> None:
        """Everything was taken."""
        if self.last is None:
            self.complain("there are no events")
            return
        for position in sorted(self._heads):
            if position > self.last[0]:
                self.complain(
                    f"the log ends at {self.last[0]}, but event {position} was published: "
                    "its end was cut off"
                )
            elif position < (self.first or 0) and (position, self._heads[position]) != self._after:
                self.complain(
                    f"event {position} was published, but the files begin at {self.first}"
                )

    def words(self) -> list[str]:
        """What was proven, for people."""
        if self.problems or self.last is None:
            shown = [f"problem  {problem}" for problem in self.problems]
            if self.problems_more:
                shown.append(f"problem  and {self.problems_more} more")
            return [*shown, f"not ok   {self.events} events read"]
        position, digest = self.last
        shown = [f"ok       {self.events} events, {self.first} to {position}, {digest.hex()}"]
        if not self._anchored():
            shown.append(
                "note     What the first event follows from was not given "
                "(--log-id, or --after), so its own hash was taken on trust."
            )
        if not self._heads:
            shown.append(
                "note     No published head was given (--head), so a log that was rewritten or cut "
                "as a whole would look the same."
            )
        return shown

    def _anchored(self) -> bool:
        return self._after is not None or (self.first == 1 and self._genesis is not None)

    def _check_place(self, position: int) -> None:
        if self.last is not None:
            before = self.last[0]
        elif self._after is not None:
            before = self._after[0]
        else:
            # Without a word about it, the files may be a part of the log.
            before = 0 if self._genesis is not None else position - 1
        if position != before + 1:
            self.complain(f"event {position} follows {before}: {gap(before, position)}")

    def _previous(self, position: int) -> bytes | None:
        if self.last is not None:
            return self.last[1]
        self.first = position
        if self._after is not None:
            return self._after[1]
        return self._genesis if position == 1 else None

    def _check_stream(self, event: dict[str, Any]) -> None:
        stream, version, position = event["stream"], event["version"], event["position"]
        known = self._streams.get(stream, 0)
        # A stream of files that begin later may have any version in front of them.
        expected = (known >> 1) + 1 if known or self.first == 1 else version
        if version != expected:
            self.complain(
                f"event {position}: version {version} of {stream} where {expected} is due"
            )
        reclaimed = bool(known & 1)
        if event["type"] == "lease.reclaimed":
            if reclaimed:
                self.complain(f"event {position}: {stream} is reclaimed a second time")
            lateness = event["data"].get("lateness_ms")
            if isinstance(lateness, (int, float)) and lateness < 0:
                self.complain(f"event {position}: {stream} was reclaimed before its deadline")
            reclaimed = True
        self._streams[stream] = version << 1 | reclaimed


def parsed(line: str) -> dict[str, Any]:
    """An event, with the types that the checks rely on."""
    event = json.loads(line, object_pairs_hook=only_once, parse_constant=no_constant)
    if not isinstance(event, dict) or set(event) != KEYS:
        raise ValueError("it has other keys than an event")
    if not isinstance(event["data"], dict):
        raise TypeError("its data is no map")
    for name in ("position", "version"):
        if type(event[name]) is not int or event[name] < 1:
            raise ValueError(f"its {name} is no number from 1 on")
    if not isinstance(event["stream"], str):
        raise TypeError("its stream is no text")
    return event


def encoded(event: dict[str, Any]) -> bytes:
    """What is hashed behind the previous hash: every field with its length in front."""
    data = json.dumps(
        event["data"], sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    moment = datetime.strptime(event["recorded_at"], "%Y-%m-%dT%H:%M:%S.%fZ")  # noqa: DTZ007
    return b"".join(
        field(value)
        for value in (
            event["position"],
            uuid.UUID(event["event_id"]).bytes,
            event["stream"],
            event["version"],
            event["type"],
            event["schema_version"],
            hashlib.sha256(data.encode()).digest(),
            event["actor"],
            event["request_id"],
            (moment - EPOCH) // timedelta(microseconds=1),
        )
    )


def field(value: Any) -> bytes:
    """A length as four big-endian bytes, and the bytes; NULL is the length -1."""
    if value is None:
        return struct.pack(">i", -1)
    raw = value if isinstance(value, bytes) else str(value).encode()
    return struct.pack(">i", len(raw)) + raw


def gap(before: int, position: int) -> str:
    """What lies between two positions that should follow each other."""
    if position <= before:
        return "events are out of order, or there twice"
    return f"{position - before - 1} missing"


def only_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A key that is there twice would show a reader something else than what was hashed."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def no_constant(name: str) -> Any:
    """NaN and the infinities are refused, as the log refuses them."""
    raise ValueError(f"{name} is no JSON")


def event_at(text: str) -> Published:
    """`POSITION:HASH`."""
    match = re.fullmatch(r"([0-9]{1,18}):([0-9a-f]{64})", text)
    if match is None:
        raise argparse.ArgumentTypeError("a position, a colon and 64 hex digits")
    return int(match.group(1)), bytes.fromhex(match.group(2))


def verify(verifier: Verifier, files: Sequence[str]) -> None:
    """Take all lines of all files."""
    for name in files:
        try:
            with sys.stdin.buffer if name == "-" else open(name, "rb") as file:
                for number, line in enumerate(file, 1):
                    verifier.take(line.decode("utf-8", "replace"), f"{name}:{number}")
        except OSError as error:
            raise Unreadable(f"{name}: {error.strerror}") from error
    verifier.end()


def archived(verifier: Verifier, manifests: Sequence[dict[str, Any]]) -> None:
    """Take the archives' events; each must be the file that its manifest names."""
    for told in manifests:
        name = str(told["folder"] / told["events"]["name"])
        digest = hashlib.sha256()
        try:
            with open(name, "rb") as file:
                for number, line in enumerate(file, 1):
                    digest.update(line)
                    verifier.take(line.decode("utf-8", "replace"), f"{name}:{number}")
        except OSError as error:
            raise Unreadable(f"{name}: {error.strerror}") from error
        if digest.hexdigest() != told["events"]["sha256"]:
            verifier.complain(f"{name} is not the file that its manifest names")
        if verifier.last != event_at(told["head"]):
            verifier.complain(f"{name} does not end with {told['head']}, as its manifest says")


def manifest_of(name: str) -> dict[str, Any]:
    """A manifest, and the folder that it lies in."""
    try:
        with open(name, encoding="utf-8") as file:
            told = json.load(file)
        event_at(told["after"]), event_at(told["head"]), uuid.UUID(told["log_id"])
        file_name = Path(told["events"]["name"]).name
        return dict(told, folder=Path(name).parent, events=dict(told["events"], name=file_name))
    except OSError as error:
        raise Unreadable(f"{name}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, argparse.ArgumentTypeError) as error:
        raise Unreadable(f"{name} is no manifest: {error}") from error


def started(told: argparse.Namespace, manifests: Sequence[dict[str, Any]]) -> Verifier:
    """The verifier, with what the first manifest says of its beginning where nobody else did."""
    after = told.after
    if after is None and manifests:
        first = event_at(manifests[0]["after"])
        if first[0] or told.log_id is None:
            after = first
    verifier = Verifier(told.log_id, after, told.head)
    for manifest in manifests:
        if told.log_id is not None and uuid.UUID(manifest["log_id"]) != told.log_id:
            verifier.complain(f"a manifest belongs to the log {manifest['log_id']}")
    return verifier


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(
        description="Prove a log that `mpack-gateway events export` wrote, without anything else."
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="in order; - for standard input")
    parser.add_argument(
        "--log-id", type=uuid.UUID, metavar="UUID", help="the first event must follow from this log"
    )
    parser.add_argument(
        "--after", type=event_at, metavar="POSITION:HASH", help="the event in front of the files"
    )
    parser.add_argument(
        "--head",
        type=event_at,
        metavar="POSITION:HASH",
        action="append",
        default=[],
        help="an event that was published; may be given again",
    )
    parser.add_argument(
        "--manifest",
        metavar="FILE",
        action="append",
        default=[],
        help="an archive, in front of the files; may be given again",
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    told = parser.parse_args(arguments)
    if not told.files and not told.manifest:
        parser.error("name a file, or an archive by --manifest")
    try:
        manifests = [manifest_of(name) for name in told.manifest]
        verifier = started(told, manifests)
        archived(verifier, manifests)
        verify(verifier, told.files)
    except Unreadable as error:
        sys.stderr.write(f"{error}\n")
        return 2
    ok = not verifier.problems
    if told.json:
        position, digest = verifier.last or (0, b"")
        answer = {
            "ok": ok,
            "events": verifier.events,
            "head_position": position,
            "head_hash": digest.hex(),
            "problems": verifier.problems,
        }
        sys.stdout.write(json.dumps(answer) + "\n")
    else:
        sys.stdout.write("\n".join(verifier.words()) + "\n")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())

"""The client's machine room: conversations that do no I/O, and the calls they ask for.

A conversation is a generator. It yields a tuple of calls that may run side by side, or a pause in
seconds, and goes on when they are done; each call carries the sink its answer went into. So the
sync and the async client share every decision and differ only in how they carry a call out.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgpack

from gateway.client.errors import ClientError, TooBig, Unreachable, refusal
from gateway.client.value import Value

MSGPACK = "application/x-msgpack"
ANSWER_BYTES_MAX = 67_108_864  # What the Muse client takes in one answer.
CALLS_AT_ONCE_MAX = 4  # The Muse client's own number for uploads.
_ATTEMPTS_MAX = 4
_PAUSE_SECONDS = 0.25
_PAUSE_SECONDS_MAX = 10.0  # A longer Retry-After is the user's to wait for, not ours.
_UNAVAILABLE = frozenset({429, 502, 503, 504})

T = TypeVar("T")


class Sink(Protocol):
    """Where an answer goes, piece by piece."""

    def begin(self, status: int, headers: Mapping[str, str]) -> None: ...

    def feed(self, chunk: bytes) -> None: ...

    def lost(self, reason: str) -> None: ...


class Call(Value):
    """One HTTP request; `private` ones carry the token, presigned ones must not."""

    method: str
    url: str
    sink: Sink
    headers: Mapping[str, str]
    body: bytes | None = None
    private: bool = True


class Pause(Value):
    """Wait this long before going on."""

    seconds: float


Effect = tuple[Call, ...] | Pause
Conversation = Generator[Effect, None, T]


class Answer:
    """A sink that keeps a small answer in memory."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.lost_because: str | None = None
        self._body = bytearray()

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """The head of the answer is here."""
        self.status, self.headers, self.lost_because = status, headers, None
        self._body.clear()

    def feed(self, chunk: bytes) -> None:
        """A piece of the body is here."""
        if len(self._body) + len(chunk) > ANSWER_BYTES_MAX:
            raise TooBig("The gateway's answer is too long.", bytes_max=ANSWER_BYTES_MAX)
        self._body += chunk

    def lost(self, reason: str) -> None:
        """The connection broke before the answer was whole."""
        self.lost_because = reason

    def value(self) -> dict[str, Any]:
        """The body, decoded; a body that cannot be read is an empty map."""
        try:
            if "json" in self.headers.get("content-type", ""):
                import json

                decoded = json.loads(self._body)
            else:
                decoded = msgpack.unpackb(bytes(self._body), strict_map_key=False)
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
            text = self._body[:400].decode("utf-8", "replace").strip()
            return {"message": text} if text else {}
        return decoded if isinstance(decoded, dict) else {}


class Request(Value):
    """One question to the gateway, before it is tried."""

    method: str
    path: str
    doing: str
    body: Mapping[str, Any] | None = None


class Address(Value):
    """The repository's URL, as a Muse remote names it: `http://host/owner/repo`."""

    url: str

    def call(self, request: Request, sink: Sink) -> Call:
        """The HTTP request for this question."""
        headers = {"Accept": f"{MSGPACK}, application/json", "Accept-Encoding": "identity"}
        body = None
        if request.body is not None:
            body = msgpack.packb(request.body, use_bin_type=True)
            headers["Content-Type"] = MSGPACK
        return Call(
            method=request.method,
            url=self.url + request.path,
            body=body,
            headers=headers,
            sink=sink,
        )


def ask(address: Address, request: Request) -> Conversation[dict[str, Any]]:
    """One question, tried again while the gateway is away; the decoded answer."""
    (answer,) = yield from ask_all(address, [request])
    return answer


def ask_all(address: Address, requests: Sequence[Request]) -> Conversation[list[dict[str, Any]]]:
    """Several questions side by side; every call here may be sent twice without harm."""
    answers = [Answer() for _ in requests]
    open_places = list(range(len(requests)))
    for attempt in range(_ATTEMPTS_MAX):
        yield tuple(address.call(requests[place], answers[place]) for place in open_places)
        open_places = [place for place in open_places if _is_away(answers[place])]
        if not open_places:
            break
        if attempt + 1 < _ATTEMPTS_MAX:
            yield Pause(pause_seconds(attempt, [answers[place] for place in open_places]))
    return [_settled(answer, request) for answer, request in zip(answers, requests, strict=True)]


def pause_seconds(attempt: int, answers: Sequence[Answer] = ()) -> float:
    """How long to wait before the next attempt: doubling, jittered, at least what was asked."""
    import secrets

    wait: float = _PAUSE_SECONDS * 2**attempt * (0.75 + secrets.randbelow(500) / 1000)
    asked = [answer.headers.get("retry-after", "") for answer in answers]
    longest = max((float(text) for text in asked if text.isdecimal()), default=0.0)
    return min(_PAUSE_SECONDS_MAX, max(wait, longest))


def _is_away(answer: Answer) -> bool:
    return answer.lost_because is not None or answer.status in _UNAVAILABLE


def _settled(answer: Answer, request: Request) -> dict[str, Any]:
    if answer.lost_because is not None:
        message = f"The gateway does not answer ({answer.lost_because}); try again shortly."
        raise Unreachable(message, doing=request.doing)
    value = answer.value()
    if answer.status in _UNAVAILABLE:
        raise Unreachable(
            str(value.get("message") or "") or None, doing=request.doing, status=answer.status
        )
    if not 200 <= answer.status < 300:
        raise refusal(answer.status, value, doing=request.doing)
    return value


def text_of(answer: Mapping[str, Any], key: str) -> str:
    """A text of the answer that must be there."""
    value = answer.get(key)
    if not isinstance(value, str):
        raise ClientError(f"The gateway's answer has no {key}; is this an mpack-gateway?")
    return value


def texts_of(answer: Mapping[str, Any], key: str) -> list[str]:
    """A list of texts of the answer; empty when it is not there."""
    values = answer.get(key) or []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ClientError(f"The gateway's answer has no readable {key}.")
    return values


def heads_of(answer: Mapping[str, Any]) -> dict[str, str]:
    """The branch heads of an answer."""
    heads = answer.get("branch_heads") or {}
    if not isinstance(heads, dict):
        raise ClientError("The gateway's answer has no readable branch_heads.")
    return {str(name): str(head) for name, head in heads.items()}

"""A client for the gateway: push a history, fetch a pack through its URL, check it, write it out.

    with Client("http://127.0.0.1:8080/me/project", token=token) as client:
        client.push(GitHistory.open("."), branch="main")
        answer = client.fetch_mpack([client.refs().branch_heads["main"]])
        with client.download(answer) as got, unpack(got) as pack:
            checkout(pack, answer.branch_heads["main"], Path("out"))

`AsyncClient` is the same for asyncio. Both run the conversations of `exchange.py`, which do no
I/O themselves.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.client.async_client import AsyncClient
    from gateway.client.conversations import MpackAnswer, Negotiated, Refs, Wish
    from gateway.client.download import Downloaded
    from gateway.client.errors import (
        AccessDenied,
        BadPack,
        CheckoutRefused,
        ClientError,
        Diverged,
        DownloadCut,
        Missing,
        Refused,
        TooBig,
        Unreachable,
        UrlExpired,
    )
    from gateway.client.files import TreeFile, checkout, files_of
    from gateway.client.pack import Limits, Pack, unpack
    from gateway.client.push import History, Progress, Pushed
    from gateway.client.sync_client import Client

__all__ = [
    "AccessDenied",
    "AsyncClient",
    "BadPack",
    "CheckoutRefused",
    "Client",
    "ClientError",
    "Diverged",
    "DownloadCut",
    "Downloaded",
    "History",
    "Limits",
    "Missing",
    "MpackAnswer",
    "Negotiated",
    "Pack",
    "Progress",
    "Pushed",
    "Refs",
    "Refused",
    "TooBig",
    "TreeFile",
    "Unreachable",
    "UrlExpired",
    "Wish",
    "checkout",
    "files_of",
    "unpack",
]

# Each name is loaded when it is asked for: a program that only clones does without the rest.
_MODULES = {
    "AccessDenied": "errors",
    "AsyncClient": "async_client",
    "BadPack": "errors",
    "CheckoutRefused": "errors",
    "Client": "sync_client",
    "ClientError": "errors",
    "Diverged": "errors",
    "DownloadCut": "errors",
    "Downloaded": "download",
    "History": "push",
    "Limits": "pack",
    "Missing": "errors",
    "MpackAnswer": "conversations",
    "Negotiated": "conversations",
    "Pack": "pack",
    "Progress": "push",
    "Pushed": "push",
    "Refs": "conversations",
    "Refused": "errors",
    "TooBig": "errors",
    "TreeFile": "files",
    "Unreachable": "errors",
    "UrlExpired": "errors",
    "Wish": "conversations",
    "checkout": "files",
    "files_of": "files",
    "unpack": "pack",
}


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(f"{__name__}.{module}"), name)

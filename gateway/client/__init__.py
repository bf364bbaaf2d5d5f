"""A client for the gateway: push a history, fetch a pack through its URL, check it, write it out.

    with Client("http://127.0.0.1:8080/me/project", token=token) as client:
        client.push(GitHistory.open("."), branch="main")
        answer = client.fetch_mpack([client.refs().branch_heads["main"]])
        with client.download(answer) as got, unpack(got.path) as pack:
            checkout(pack, answer.branch_heads["main"], Path("out"))

`AsyncClient` is the same for asyncio. Both run the conversations of `exchange.py`, which do no
I/O themselves.
"""

from gateway.client.async_client import AsyncClient
from gateway.client.checkout import TreeFile, checkout, files_of
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

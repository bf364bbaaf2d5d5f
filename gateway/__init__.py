"""The HTTP side and the packs.

`from gateway import Gateway` gives hosts the gateway without its HTTP side; it is loaded when it is
asked for, so that commands which do not need it start quickly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.embed import Gateway

__version__ = "0.1.0"
__all__ = ["Gateway", "__version__"]


def __getattr__(name: str) -> object:
    if name == "Gateway":
        from gateway.embed import Gateway

        return Gateway
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)

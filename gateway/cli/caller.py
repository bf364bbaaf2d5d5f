"""Who gives a command, for the log: the account that runs it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leases.lessor import Caller


def caller() -> Caller:
    """`command:<account>`; an account without a name, as in containers, by its number."""
    from leases.lessor import Caller

    try:
        import pwd

        name = pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):
        name = str(os.getuid())
    return Caller(actor=f"command:{name}")

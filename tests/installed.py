"""Programs of the system that tests run, where they are installed."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.conftest import IN_CI


def installed(program: str, *, package: str) -> str:
    """Its path. Where it is missing the test is skipped, and fails where everything is tested."""
    # Debian keeps servers where a user's own PATH does not lead.
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is not None:
        return found
    reason = f"{program} is missing; apt-get install {package}"
    return pytest.fail(reason) if IN_CI else pytest.skip(reason)

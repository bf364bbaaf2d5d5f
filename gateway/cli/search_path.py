"""How a shell finds this program where it does not yet: `make` leaves it in .venv/bin."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

_PROGRAM = "mpack-gateway"


def search_path_lines() -> list[str]:
    """What to type before `mpack-gateway …` works in another terminal; nothing where it does."""
    folder = Path(sys.executable).parent
    if shutil.which(_PROGRAM) is not None or not (folder / _PROGRAM).exists():
        return []
    return [f"PATH=$PATH:{shlex.quote(str(folder))}"]

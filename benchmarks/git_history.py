"""A Git repository with a history like that of source code, the same one every time.

The files are those of Python's own library that lie at hand. Each begins with some of its lines;
every commit takes one to four files, a few of them far more often than the rest, and puts in the
next lines of each, changes a line or takes one out. So texts, sizes and changes are those of
real code, and the history is as long as one likes.
"""

from __future__ import annotations

import random
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_FILES = 300
_FILE_BYTES_MAX = 60_000
_FIRST_LINES = 40
_EDITS_MAX = 4
_FIRST_COMMIT_AT = 1_700_000_000


class _File:
    """A file that grows towards its text."""

    def __init__(self, path: str, text: list[bytes]) -> None:
        self.path = path
        self._rest = text[_FIRST_LINES:]
        self.lines = text[:_FIRST_LINES]

    def edit(self, chance: random.Random) -> None:
        """One change, as a person would make it."""
        at = chance.randrange(len(self.lines) + 1)
        kind = chance.random()
        if kind < 0.6 and self._rest:
            count = chance.randint(1, 12)
            self.lines[at:at] = self._rest[:count]
            del self._rest[:count]
        elif kind < 0.9 and at < len(self.lines):
            line = self.lines[at]
            self.lines[at] = line.replace(b"self", b"this") + b"    # %d\n" % chance.randrange(99)
        elif at < len(self.lines) and len(self.lines) > _FIRST_LINES:
            del self.lines[at : at + chance.randint(1, 6)]
        else:
            self.lines.append(b"# revised %d\n" % chance.randrange(10**6))


def _files() -> list[_File]:
    library = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library).as_posix()
        if "site-packages" in name or "test" in name or path.stat().st_size > _FILE_BYTES_MAX:
            continue
        text = path.read_bytes().splitlines(keepends=True)
        if len(text) > 2 * _FIRST_LINES:
            found.append(_File(name, text))
    step = max(1, len(found) // _FILES)
    return found[::step][:_FILES]


def _data(content: bytes) -> bytes:
    return b"data %d\n%s\n" % (len(content), content)


def _stream(commits: int) -> Iterator[bytes]:
    chance = random.Random(commits)
    files = _files()
    weights = [1 / (1 + number) for number in range(len(files))]
    chance.shuffle(weights)
    for number in range(commits):
        changed = files
        if number:
            edited = chance.choices(files, weights, k=chance.randint(1, _EDITS_MAX))
            changed = sorted(set(edited), key=lambda file: file.path)
            for file in changed:
                file.edit(chance)
        yield b"commit refs/heads/main\nmark :%d\n" % (number + 1)
        yield b"committer Ada <ada@example.org> %d +0000\n" % (_FIRST_COMMIT_AT + 3600 * number)
        names = ", ".join(file.path for file in changed[:4])
        yield _data(f"Change {names}\n\nStep {number} of {commits}.\n".encode())
        for file in changed:
            yield b"M 100644 inline %s\n" % file.path.encode()
            yield _data(b"".join(file.lines))


def make_history(folder: Path, commits: int) -> None:
    """A bare repository with one branch, `main`, packed as `git gc` packs it."""
    _git("init", "--quiet", "--bare", "--initial-branch=main", str(folder))
    command = ["git", "-C", str(folder), "fast-import", "--quiet"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as importing:
        assert importing.stdin is not None
        for part in _stream(commits):
            importing.stdin.write(part)
    assert importing.returncode == 0
    # fast-import's own deltas are poor ones; `-f` works all of them out as `git gc` would have.
    _git("-C", str(folder), "repack", "-a", "-d", "-f", "-q")


def pack_bytes(folder: Path) -> int:
    """How large the packs of a bare repository are."""
    return sum(path.stat().st_size for path in folder.glob("objects/pack/*.pack"))


def _git(*words: str) -> None:
    subprocess.run(["git", *words], check=True)

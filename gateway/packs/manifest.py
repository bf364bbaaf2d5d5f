"""Manifests: which path holds which object, whole or as a delta on another manifest.

Stored manifests are msgpack maps with sorted paths and bare object ids, so that equal manifests
are equal bytes. A delta is such a map too: the paths that differ from the base, nil for a path
that the base has and this one has not. Chains of deltas are bounded, because every read walks one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from gateway.errors import Incomplete, TooLarge
from gateway.wire.ids import PREFIX
from leases.errors import Corrupt

Manifest = dict[str, str]
Delta = dict[str, str | None]

# A read walks a chain in one recursive query; at 32, histories of small commits already store a
# thirtieth of their manifests whole, and longer chains save little more.
CHAIN_DEPTH_MAX = 32
DELTA_SHARE_MAX = 0.5  # Above half the entries a delta costs a read and saves too little.

_ENCODER = msgspec.msgpack.Encoder()
_MANIFEST = msgspec.msgpack.Decoder(Manifest)
_DELTA = msgspec.msgpack.Decoder(Delta)
_DRIVE = re.compile(r"[A-Za-z]:")
# A clone would overwrite the configuration and hooks of whoever checks it out.
_CLIENT_FOLDERS = frozenset({".git", ".muse"})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredForm:
    """How a manifest is stored: whole, or as a delta on a base; `depth` counts the deltas."""

    manifest_blob: bytes | None
    base_snapshot_id: str | None
    delta_blob: bytes | None
    depth: int


def encode_manifest(manifest: Mapping[str, str]) -> bytes:
    """The stored form of a whole manifest."""
    return _ENCODER.encode(dict(sorted(manifest.items())))


def encode_delta(delta: Mapping[str, str | None]) -> bytes:
    """The stored form of a delta."""
    return _ENCODER.encode(dict(sorted(delta.items())))


def decode_manifest(blob: bytes) -> Manifest:
    """A stored manifest with bare object ids, whoever wrote it.

    Errors: Corrupt when it is not a map of texts.
    """
    try:
        manifest = _MANIFEST.decode(blob)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Corrupt("A stored manifest cannot be read.") from error
    for path, object_id in manifest.items():
        if object_id.startswith(PREFIX):
            manifest[path] = object_id.removeprefix(PREFIX)
    return manifest


def decode_delta(blob: bytes) -> Delta:
    """A stored delta with bare object ids, whoever wrote it."""
    try:
        delta = _DELTA.decode(blob)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Corrupt("A stored delta of a manifest cannot be read.") from error
    for path, object_id in delta.items():
        if object_id is not None and object_id.startswith(PREFIX):
            delta[path] = object_id.removeprefix(PREFIX)
    return delta


def delta_between(base: Mapping[str, str], manifest: Mapping[str, str]) -> Delta:
    """What turns `base` into `manifest`."""
    delta: Delta = {
        path: object_id for path, object_id in manifest.items() if base.get(path) != object_id
    }
    if len(manifest) < len(base) + len(delta):  # Otherwise every path of the base is still there.
        delta.update(dict.fromkeys(base.keys() - manifest.keys()))
    return delta


def apply_delta(base: Mapping[str, str], delta: Mapping[str, str | None]) -> Manifest:
    """The manifest that `delta` makes of `base`, which stays as it is."""
    manifest = dict(base)
    apply_in_place(manifest, delta)
    return manifest


def apply_in_place(manifest: Manifest, delta: Mapping[str, str | None]) -> None:
    """As `apply_delta`, without a copy: for a manifest that nobody else holds."""
    for path, object_id in delta.items():
        if object_id is None:
            manifest.pop(path, None)
        else:
            manifest[path] = object_id


def choose_form(
    manifest: Mapping[str, str],
    *,
    base_snapshot_id: str | None = None,
    base: Mapping[str, str] | None = None,
    base_depth: int = 0,
) -> StoredForm:
    """Whole, or a delta where that is clearly smaller and its chain stays short."""
    if base_snapshot_id is not None and base is not None and base_depth < CHAIN_DEPTH_MAX:
        delta = delta_between(base, manifest)
        if len(delta) <= len(manifest) * DELTA_SHARE_MAX:
            return StoredForm(
                manifest_blob=None,
                base_snapshot_id=base_snapshot_id,
                delta_blob=encode_delta(delta),
                depth=base_depth + 1,
            )
    return StoredForm(
        manifest_blob=encode_manifest(manifest), base_snapshot_id=None, delta_blob=None, depth=0
    )


@dataclass(slots=True, kw_only=True)
class PathCheck:
    """Refuses paths that would leave the working tree, or that no file system can hold together.

    One check serves a whole push: successive manifests share nearly all of their paths, and a path
    is looked at once. A backslash is a legal character in a file name, but a separator for other
    readers of the same repo: paths are judged as both of them would read them.
    """

    path_bytes_max: int
    _parents: dict[str, str] = field(default_factory=dict)

    def check(self, manifest: Iterable[str]) -> None:
        """Check all paths of one manifest.

        Errors: Incomplete (422) naming the path; TooLarge (413) for one that is too long.
        """
        paths = manifest if isinstance(manifest, Mapping | set | frozenset) else set(manifest)
        folders = {self._parent_of(path) for path in paths}
        while folders:
            folders.discard("")
            for folder in folders:
                if folder in paths:
                    raise Incomplete(f"{folder!r} is a file and a folder in one manifest.")
            folders = {folder.rpartition("/")[0] for folder in folders}

    def _parent_of(self, path: str) -> str:
        parent = self._parents.get(path)
        if parent is None:
            self._check_path(path)
            parent = self._parents[path] = path.rpartition("/")[0]
        return parent

    def _check_path(self, path: str) -> None:
        try:
            size_bytes = len(path.encode())
        except UnicodeEncodeError as error:
            raise Incomplete(f"The path {path!r} is not valid text.") from error
        if size_bytes > self.path_bytes_max:
            raise TooLarge(f"A path is over {self.path_bytes_max:,} bytes: {path[:80]!r}.")
        reason = _reason_against(path)
        if reason:
            raise Incomplete(f"The path {path!r} {reason}.", path=path)


def _reason_against(path: str) -> str | None:
    if not path:
        return "is empty"
    if "\0" in path:
        return "holds a NUL character"
    if _DRIVE.match(path):
        return "begins with a drive letter"
    segments = path.replace("\\", "/").split("/")
    if not segments[0]:
        return "is absolute"
    if "" in segments:
        return "has an empty segment"
    if "." in segments or ".." in segments:
        return "has a segment that is . or .."
    if segments[0].lower() in _CLIENT_FOLDERS:
        return "lies in a folder that belongs to the client itself"
    return None

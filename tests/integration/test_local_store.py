"""What is the local store's alone: files, crashes, full disks, the shared signing key."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.storage.folder import LEFTOVER_IDLE_SECONDS
from gateway.storage.keys import InvalidKey
from gateway.storage.local import SERVED_BLOCK_BYTES, LocalStore
from leases.errors import BlobMissing, Corrupt, InvalidRequest, StoreUnavailable
from leases.ports import DeleteOutcome

KEY = "transient/log/one"
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def new_store(root: Path) -> LocalStore:
    return LocalStore(root, public_url="http://gateway.example", clock=lambda: NOW)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "blobs"


@pytest.fixture
async def store(root: Path) -> AsyncIterator[LocalStore]:
    async with new_store(root) as opened:
        yield opened


def scratch_files(root: Path) -> list[str]:
    return [path.name for path in (root / ".tmp").iterdir()]


def make_folder(folder: Path) -> None:
    folder.mkdir(parents=True)


def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def move(source: Path, target: Path) -> None:
    source.rename(target)


def drop_from_memory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def truncate(path: Path, size_bytes: int) -> None:
    os.truncate(path, size_bytes)


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that runs this code with a store's usual imports."""
    head = """
        import asyncio, sys
        from datetime import UTC, datetime
        from pathlib import Path
        from gateway.storage.local import SERVED_BLOCK_BYTES, LocalStore
        def new_store(root):
            clock = lambda: datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
            return LocalStore(Path(root), public_url="http://gateway.example", clock=clock)
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


class TestSigningKey:
    async def test_starters_at_once_end_with_one_key(self, root: Path) -> None:
        """All replicas must accept what any of them signed."""
        code = """
            async def main():
                print("ready", flush=True)
                sys.stdin.readline()
                async with new_store(sys.argv[1]) as store:
                    print(await store.presign_get("k", expires_in=60))
            asyncio.run(main())
        """
        starters = [child(code, root) for _ in range(6)]
        for starter in starters:
            assert starter.stdout is not None
            assert starter.stdout.readline() == "ready\n"
        urls = {starter.communicate("go\n")[0] for starter in starters}
        assert len(urls) == 1
        assert scratch_files(root) == []

    async def test_is_its_owners_alone_and_survives_a_restart(self, root: Path) -> None:
        urls = set()
        for _ in range(2):
            async with new_store(root) as store:
                urls.add(await store.presign_get(KEY, expires_in=60))
        assert len(urls) == 1
        assert stat.S_IMODE((root / ".signing-key").stat().st_mode) == 0o600

    async def test_a_damaged_key_stops_the_start(self, root: Path) -> None:
        """A short key would sign URLs that are easy to forge."""
        make_folder(root)
        (root / ".signing-key").write_bytes(b"short")
        with pytest.raises(Corrupt):
            await new_store(root).open()

    async def test_is_out_of_every_keys_reach(self, store: LocalStore, root: Path) -> None:
        with pytest.raises(InvalidKey):
            await store.get(".signing-key")
        assert [info async for info in store.list("")] == []

    async def test_shows_nowhere(self, store: LocalStore, root: Path) -> None:
        secret = (root / ".signing-key").read_bytes()
        shown = repr(store) + str(store) + repr(vars(store))
        assert secret.hex() not in shown
        assert repr(secret) not in shown


class TestTraversal:
    @pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a/../../x", ".tmp/x", "a\0b", ""])
    async def test_no_call_takes_a_key_that_leads_outside(
        self, store: LocalStore, key: str
    ) -> None:
        for call in (
            store.put(key, b"x"),
            store.get(key),
            store.delete(key),
            store.head(key),
            store.abort_uploads(key),
            store.presign_get(key, expires_in=5),
            store.open_blob(key),
        ):
            with pytest.raises(InvalidRequest):
                await call

    async def test_a_bad_key_spoils_no_batch(self, store: LocalStore) -> None:
        await store.put(KEY, b"x")
        outcomes = await store.delete_many(["../x", KEY])
        assert isinstance(outcomes["../x"], InvalidKey)
        assert outcomes[KEY] is DeleteOutcome.DELETED

    async def test_a_symbolic_link_is_no_blob(
        self, store: LocalStore, root: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "secret").write_text("secret")
        (root / "link").symlink_to(tmp_path / "secret")
        with pytest.raises(BlobMissing):
            await store.get("link")
        assert await store.head("link") is None
        assert [info async for info in store.list("")] == []

    async def test_a_folder_is_no_blob(self, store: LocalStore) -> None:
        await store.put(KEY, b"x")
        with pytest.raises(BlobMissing):
            await store.get("transient")
        with pytest.raises(BlobMissing):
            await store.get(f"{KEY}/below")
        assert await store.head("transient") is None
        assert await store.delete("transient") is DeleteOutcome.ALREADY_GONE
        assert await store.delete(f"{KEY}/below") is DeleteOutcome.ALREADY_GONE
        assert await store.get(KEY) == b"x"

    @pytest.mark.parametrize("key", ["transient", f"{KEY}/below"])
    async def test_a_key_that_is_anothers_folder_is_refused(
        self, store: LocalStore, root: Path, key: str
    ) -> None:
        await store.put(KEY, b"x")
        with pytest.raises(InvalidKey):
            await store.put(key, b"y")
        assert scratch_files(root) == []


class TestUploads:
    async def test_a_failing_source_leaves_nothing(self, store: LocalStore, root: Path) -> None:
        async def source() -> AsyncIterator[bytes]:
            yield b"x" * 3_000_000
            assert len(scratch_files(root)) == 1
            raise ConnectionResetError("the source, not the store")

        with pytest.raises(ConnectionResetError):
            await store.put(KEY, source())
        assert scratch_files(root) == []

    async def test_a_cancellation_leaves_nothing(self, store: LocalStore, root: Path) -> None:
        under_way = asyncio.Event()

        async def source() -> AsyncIterator[bytes]:
            yield b"x" * 3_000_000
            under_way.set()
            await asyncio.Event().wait()

        putting = asyncio.create_task(store.put(KEY, source()))
        await under_way.wait()
        assert len(scratch_files(root)) == 1
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        assert scratch_files(root) == []
        assert await store.head(KEY) is None

    async def test_cancelled_anywhere_it_stores_all_or_nothing(
        self, store: LocalStore, root: Path
    ) -> None:
        """The loop turns are counted, so the cancellation falls into every await of a put."""
        content = b"x" * 100_000
        for turns in range(40):
            key = f"transient/log/{turns}"
            putting = asyncio.create_task(store.put(key, content))
            for _ in range(turns):
                await asyncio.sleep(0)
            putting.cancel()
            await asyncio.gather(putting, return_exceptions=True)
            assert scratch_files(root) == []
            info = await store.head(key)
            assert info is None or info.size_bytes == len(content)

    async def test_aborting_stops_a_put_under_way(self, store: LocalStore, root: Path) -> None:
        """The reaper aborts what a dying builder may still be writing."""
        under_way, aborted = asyncio.Event(), asyncio.Event()

        async def source() -> AsyncIterator[bytes]:
            yield b"x" * 3_000_000
            under_way.set()
            await aborted.wait()

        async def abort() -> None:
            await under_way.wait()
            assert await store.abort_uploads("transient/log/other") == 0
            assert await store.abort_uploads(KEY) == 1
            aborted.set()

        results = await asyncio.gather(store.put(KEY, source()), abort(), return_exceptions=True)
        assert isinstance(results[0], StoreUnavailable)
        assert results[1] is None
        assert await store.head(KEY) is None

    async def test_a_killed_put_leaves_no_blob_and_can_be_cleared(
        self, store: LocalStore, root: Path
    ) -> None:
        code = """
            async def source():
                yield b"x" * 3_000_000
                print("half", flush=True)
                await asyncio.Event().wait()
            async def main():
                async with new_store(sys.argv[1]) as store:
                    await store.put(sys.argv[2], source())
            asyncio.run(main())
        """
        with child(code, root, KEY) as putting:
            assert putting.stdout is not None
            assert putting.stdout.readline() == "half\n"
            putting.send_signal(signal.SIGKILL)
        assert await store.head(KEY) is None
        assert [info async for info in store.list("")] == []
        assert await store.abort_uploads(KEY) == 1
        assert scratch_files(root) == []

    async def test_a_start_clears_only_what_nobody_writes_any_more(self, root: Path) -> None:
        """Another replica may be in the middle of a put while this one starts."""
        await new_store(root).open()
        for name, idle in (("old", LEFTOVER_IDLE_SECONDS + 60), ("young", 60)):
            leftover = root / ".tmp" / name
            leftover.touch()
            written = leftover.stat().st_mtime - idle
            os.utime(leftover, (written, written))
        await new_store(root).open()
        assert scratch_files(root) == ["young"]

    async def test_many_puts_into_new_folders_at_once(self, store: LocalStore) -> None:
        keys = [f"transient/{number % 7}/{number % 3}/{number}" for number in range(60)]
        await asyncio.gather(*(store.put(key, key.encode()) for key in keys))
        assert {info.key async for info in store.list("transient/")} == set(keys)


class TestDurability:
    @pytest.fixture
    def effects(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The order of what reaches the disk, seen at the system calls."""
        seen: list[str] = []
        fsync, rename, unlink = os.fsync, os.rename, os.unlink

        def seen_fsync(descriptor: int) -> None:
            fsync(descriptor)
            seen.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")

        def seen_rename(source: Path, target: Path) -> None:
            rename(source, target)
            seen.append(f"rename {Path(target).name}")

        def seen_unlink(path: Path) -> None:
            seen.append(f"unlink {Path(path).name}")
            unlink(path)

        monkeypatch.setattr(os, "fsync", seen_fsync)
        monkeypatch.setattr(os, "rename", seen_rename)
        monkeypatch.setattr(os, "unlink", seen_unlink)
        return seen

    async def test_a_put_is_on_disk_before_it_returns(
        self, store: LocalStore, effects: list[str]
    ) -> None:
        await store.put("a/b/one", b"x")
        assert effects[0].startswith("sync ")
        assert effects[1:] == ["sync a", "sync blobs", "rename one", "sync b"]
        effects.clear()
        await store.put("a/b/two", b"x")
        assert effects[1:] == ["rename two", "sync b"]

    async def test_a_batch_of_deletions_syncs_each_folder_once(
        self, store: LocalStore, effects: list[str]
    ) -> None:
        keys = [f"a/{number}" for number in range(5)] + ["b/1"]
        for key in keys:
            await store.put(key, b"x")
        effects.clear()
        await store.delete_many(keys)
        assert effects[-2:] == ["sync a", "sync b"]
        assert [effect for effect in effects if effect.startswith("sync")] == effects[-2:]

    async def test_a_repeated_deletion_syncs_too(
        self, store: LocalStore, effects: list[str]
    ) -> None:
        """The first try may have died between the unlink and the sync."""
        await store.put(KEY, b"x")
        await store.delete(KEY)
        effects.clear()
        assert await store.delete(KEY) is DeleteOutcome.ALREADY_GONE
        assert effects[-1] == "sync log"


class TestDiskFailures:
    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Path]:
        mounted = tmp_path / "small"
        mounted.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mounted)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting a small tmpfs needs root")
        try:
            yield mounted
        finally:
            subprocess.run(["umount", str(mounted)], check=True)

    async def test_a_full_disk_is_the_stores_failure(self, small_disk: Path) -> None:
        root = small_disk / "blobs"
        async with new_store(root) as store:
            await store.put("segments/kept", b"k" * 1000)
            with pytest.raises(StoreUnavailable, match="full") as caught:
                await store.put(KEY, b"x" * 2_000_000)
            assert caught.value.fields == {"reason": "ENOSPC"}
            assert scratch_files(root) == []
            await store.put(KEY, b"x" * 500_000)
            assert await store.get("segments/kept") == b"k" * 1000
            assert await store.delete(KEY) is DeleteOutcome.DELETED

    async def test_a_limit_on_file_sizes_is_too(self, root: Path) -> None:
        """Runs without root: the limit is set in a process of its own."""
        code = """
            import resource
            from leases.errors import StoreUnavailable
            async def main():
                async with new_store(sys.argv[1]) as store:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
                    try:
                        await store.put("k", b"x" * 2_000_000)
                    except StoreUnavailable as error:
                        print(error.fields["reason"])
            asyncio.run(main())
        """
        assert child(code, root).communicate()[0] == "EFBIG\n"
        assert scratch_files(root) == []

    async def test_a_root_that_is_a_file_is_told_at_the_start(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StoreUnavailable):
            await new_store(tmp_path / "file" / "blobs").open()

    @pytest.mark.parametrize("left_behind", ["nothing", "an empty mount point"])
    async def test_a_vanished_volume_is_a_failure_and_no_deletion(
        self, store: LocalStore, root: Path, left_behind: str
    ) -> None:
        """Its blobs return with it: "already gone" would be recorded of blobs that live on."""
        await store.put(KEY, b"x")
        move(root, root.with_name("elsewhere"))
        if left_behind != "nothing":
            make_folder(root)
        for call in (
            store.put(KEY, b"x"),
            store.get(KEY),
            store.head(KEY),
            store.delete(KEY),
            store.abort_uploads(KEY),
            anext(store.list("")),
        ):
            with pytest.raises(StoreUnavailable):
                await call
        remove_folder(root)
        move(root.with_name("elsewhere"), root)
        assert await store.delete(KEY) is DeleteOutcome.DELETED


class TestReading:
    async def test_an_open_blob_is_read_to_its_end_after_its_deletion(
        self, store: LocalStore
    ) -> None:
        """A download under way is not torn; only new requests find nothing."""
        await store.put(KEY, b"0123456789")
        blob = await store.open_blob(KEY)
        try:
            await store.delete(KEY)
            assert await blob.read(2, 100) == b"23456789"
        finally:
            await blob.close()
        with pytest.raises(BlobMissing):
            await store.open_blob(KEY)

    @pytest.mark.parametrize("held", [True, False], ids=["held", "not-held"])
    async def test_it_is_the_same_whether_the_system_holds_it_or_not(
        self, store: LocalStore, root: Path, held: bool
    ) -> None:
        """Where the system drops what it holds (not on every file system), a thread reads it."""
        content = os.urandom(3 * SERVED_BLOCK_BYTES + 1)
        await store.put(KEY, content)
        if not held:
            drop_from_memory(root / KEY)
        blob = await store.open_blob(KEY)
        try:
            chunks = [bytes(chunk) async for chunk in blob.chunks(1, len(content))]
        finally:
            await blob.close()
        assert b"".join(chunks) == content[1:]
        assert max(map(len, chunks)) == SERVED_BLOCK_BYTES

    async def test_a_blob_that_became_shorter_is_a_failure(
        self, store: LocalStore, root: Path
    ) -> None:
        await store.put(KEY, b"0123456789")
        blob = await store.open_blob(KEY)
        truncate(root / KEY, 4)
        try:
            with pytest.raises(StoreUnavailable):
                _ = [chunk async for chunk in blob.chunks(0, 10)]
        finally:
            await blob.close()

    async def test_a_replaced_blob_has_another_etag(self, store: LocalStore) -> None:
        etags = set()
        for _ in range(2):
            await store.put(KEY, b"same")
            blob = await store.open_blob(KEY)
            etags.add(blob.etag)
            await blob.close()
        assert len(etags) == 2

    @pytest.mark.parametrize("start, stop", [(-1, 4), (5, 4), (None, -1)])
    async def test_a_range_runs_forward(
        self, store: LocalStore, start: int | None, stop: int | None
    ) -> None:
        await store.put(KEY, b"0123456789")
        with pytest.raises(InvalidRequest):
            await store.get(KEY, start, stop)

    async def test_a_listing_bears_deletions_under_way(self, store: LocalStore) -> None:
        keys = {f"transient/log/{number}" for number in range(200)}
        for key in keys:
            await store.put(key, b"x")
        seen = set()
        async for info in store.list("transient/"):
            seen.add(info.key)
            await store.delete_many(sorted(keys))
        assert seen <= keys

    async def test_no_public_url_no_presigning(self, root: Path) -> None:
        """An embedding host without our HTTP side: nobody could serve such a URL."""
        store = LocalStore(root, public_url="", clock=lambda: NOW)
        assert store.supports_presign is False
        assert new_store(root).supports_presign is True


async def test_leaves_no_descriptor_open(store: LocalStore) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    await store.put(KEY, b"x")
    before = count()
    for number in range(20):
        await store.put(f"transient/log/{number}", b"x" * 1000)
        await store.get(f"transient/log/{number}", 0, 10)
        with pytest.raises(InvalidKey):
            await store.put("transient", b"x")
        _ = [info async for info in store.list("transient/")]
        await store.delete(f"transient/log/{number}")
    assert count() == before

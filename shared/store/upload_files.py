"""Large uploads as files, where gateway and workers share a folder, so that their bytes need not pass through Redis.

    FOLDER/MESH/ID         a picture, named by its job; MESH is this mesh's own name, so that no other's files are touched
    FOLDER/MESH/.identity  random; who reads the same shares the folder

In the place of the picture Redis holds a *pointer*: the folder's identity and the number of bytes. All that the scripts do to
an upload they do to its pointer; the file goes with it. A file is written by one gateway, which holds a lock on it until its
job is accepted (or never will be), so a file without lock and pointer is nobody's: whoever ends a job removes its file, and the
sweep removes what was left by those who were killed. It is on the disk before its job is accepted, as everything in a Redis
that syncs; docs/decisions/0005 has the measurements.
"""

import asyncio
import contextlib
import fcntl
import os
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import structlog

from shared.messages import Heartbeat
from shared.store.packing import Buffer

MARK = b"\0file "
"""What a pointer begins with, and no picture does. The scripts know it as well (`lua/_uploads.lua`)."""

IDENTITY = ".identity"
YOUNG_S = 2.0
"""A file this young may not have been locked yet by the gateway that makes it."""

SWEEP_AT_ONCE = 500
SPARE_BYTES = 256 << 20
"""What uploads leave free on the disk."""

PIECES_AT_ONCE = 512
"""What one write may gather (IOV_MAX is 1024)."""

USERS = frozenset({"gateway", "preprocess", "inference"})
"""Kinds of processes that write or read uploads."""

log = structlog.get_logger()


class Pointer(msgspec.Struct, frozen=True):
    """What Redis holds of an upload that is a file."""

    identity: str
    size_bytes: int

    def __bytes__(self) -> bytes:
        return b"%s%s %d" % (MARK, self.identity.encode(), self.size_bytes)

    @classmethod
    def of(cls, upload: bytes) -> "Pointer | None":
        """The pointer that Redis holds, or `None` if it holds the picture itself."""
        if not upload.startswith(MARK):
            return None
        identity, size_bytes = upload[len(MARK) :].decode().split(" ")
        return cls(identity, int(size_bytes))


class UploadFile:
    """A file that is being received. Close it when its job was accepted, or will never be.

    Whoever waits for a write may be canceled while its thread goes on: the lock keeps the descriptor open until it is through.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._is_closed = False
        self._in_use = threading.Lock()
        self.size_bytes = 0

    async def write(self, pieces: Sequence[Buffer], *, last: bool = False) -> None:
        """Append pieces, in a thread; after the last ones the whole is on the disk.

        Raises:
            OSError: there is no room, or the disk does not do it.
        """
        await asyncio.get_running_loop().run_in_executor(None, self._write, pieces, last)

    def _write(self, pieces: Sequence[Buffer], last: bool) -> None:
        with self._in_use:
            if not self._is_closed:
                self._append(pieces)
                if last:
                    os.fdatasync(self._descriptor)

    def _append(self, pieces: Sequence[Buffer]) -> None:
        if self._descriptor < 0:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for at in range(0, len(pieces), PIECES_AT_ONCE):
            some = pieces[at : at + PIECES_AT_ONCE]
            size = sum(len(piece) for piece in some)
            written = os.writev(self._descriptor, some)
            if written < size:  # the disk is full, or a signal came: the rest says which
                rest = memoryview(b"".join(some))[written:]
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            self.size_bytes += size

    async def read(self, size_bytes: int) -> bytes:
        """So much of what was written."""
        return await asyncio.to_thread(os.pread, self._descriptor, size_bytes, 0) if size_bytes else b""

    def close(self) -> None:
        """Give up the file's lock, once no thread writes any more; from then on it lives as long as its pointer."""
        if self._in_use.acquire(blocking=False):  # nearly always: a thread for it costs more than to close it
            self._close()
        else:
            asyncio.get_running_loop().run_in_executor(None, self._close_after_write)

    def _close_after_write(self) -> None:
        self._in_use.acquire()
        self._close()

    def _close(self) -> None:
        """Close it, and let go of what the caller has locked."""
        try:
            if self._descriptor >= 0 and not self._is_closed:
                os.close(self._descriptor)
            self._is_closed = True
        finally:
            self._in_use.release()


class FoundFile(msgspec.Struct, frozen=True):
    """An upload's file, open for reading; close it."""

    descriptor: int
    size_bytes: int

    def read(self) -> bytes:
        """All of it."""
        return os.pread(self.descriptor, self.size_bytes, 0)

    def close(self) -> None:
        """Let go of it."""
        os.close(self.descriptor)


class UploadFiles:
    """The folder as this process sees it. `folder` may be empty: there is none then, and all uploads go to Redis."""

    def __init__(self, folder: str) -> None:
        self._root = Path(folder) if folder else None
        self._folder: Path | None = None
        self.identity = ""
        """Empty where there is no folder, or it cannot be used."""
        self.shared = False
        """Whether all who would read a file from here can: as `probe` saw it last."""
        self._left: Iterator[os.DirEntry[str]] | None = None

    def open(self, mesh: str) -> None:
        """Find the folder of this mesh, or make it. What is wrong with it is logged, and turns files off."""
        if self._root is None:
            return
        folder = self._root / mesh
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder, self.identity = folder, _identity(folder)
        except OSError as error:
            self._folder, self.identity, self.shared = None, "", False
            log.warning("uploads.no_folder", error=str(error))

    def probe(self, beats: Iterable[Heartbeat]) -> None:
        """See in the heartbeats whether every process that reads uploads shares this folder."""
        users = [beat for beat in beats if beat.kind in USERS]
        readers = any(beat.kind == "preprocess" for beat in users)
        shared = bool(self.identity) and readers and all(_has(beat, self.identity) for beat in users)
        if shared != self.shared:
            log.info("uploads.changed", uploads="file" if shared else "redis")
        self.shared = shared

    def create(self, job_id: str) -> UploadFile | None:
        """A file for this upload; `None` where not all share the folder, or the disk has no room."""
        if not self.shared or self._folder is None:
            return None
        try:
            disk = os.statvfs(self._folder)
        except OSError:
            return None
        if disk.f_bavail * disk.f_frsize < SPARE_BYTES:
            return None
        return UploadFile(self._folder / job_id)

    def find(self, job_id: str, pointer: Pointer) -> FoundFile | None:
        """An upload's file; `None` where it is gone, not whole, or in another folder."""
        if self._folder is None or pointer.identity != self.identity:
            return None
        try:
            descriptor = os.open(self._folder / job_id, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        if os.fstat(descriptor).st_size != pointer.size_bytes:
            os.close(descriptor)
            return None
        return FoundFile(descriptor, pointer.size_bytes)

    def link(self, job_id: str, new_id: str, pointer: Pointer) -> bool:
        """The same file for another job as well. False: it cannot be reached."""
        if self._folder is None or pointer.identity != self.identity:
            return False
        try:
            os.link(self._folder / job_id, self._folder / new_id)
        except FileExistsError:
            return True  # this replay was asked for twice
        except OSError:
            return False
        return True

    def remove(self, job_ids: Sequence[str]) -> None:
        """Remove the files of uploads that are no longer wanted, behind the scenes."""
        if self._folder is not None and job_ids:
            asyncio.get_running_loop().run_in_executor(None, self._unlink, [self._folder / job_id for job_id in job_ids])

    async def sweep(self, wanted: Callable[[Sequence[str]], Awaitable[Sequence[bool]]]) -> int:
        """Look through some of the folder and remove what nobody wants; returns how many. `wanted` asks for the pointers."""
        names = await asyncio.to_thread(self._unlocked)
        if not names or self._folder is None:
            return 0
        left = [name for name, is_wanted in zip(names, await wanted(names), strict=True) if not is_wanted]
        await asyncio.to_thread(self._unlink, [self._folder / name for name in left])
        return len(left)

    def _unlocked(self) -> list[str]:
        """Some files that no gateway is writing, in turn."""
        if self._folder is None:
            return []
        found: list[str] = []
        if self._left is None:
            with contextlib.suppress(OSError):
                self._left = os.scandir(self._folder)
        oldest_s = time.time() - YOUNG_S
        for entry in self._left or ():
            with contextlib.suppress(OSError):
                if not entry.name.startswith(".") and entry.stat().st_ctime < oldest_s and _is_unlocked(entry.path):
                    found.append(entry.name)
            if len(found) >= SWEEP_AT_ONCE:
                return found
        self._left = None
        return found

    @staticmethod
    def _unlink(paths: Iterable[Path]) -> None:
        for path in paths:
            with contextlib.suppress(OSError):
                path.unlink()


def _identity(folder: Path) -> str:
    """The folder's, made by the first who comes: a link shows up with all that is in it, or not at all."""
    path = folder / IDENTITY
    if not path.exists():
        own = folder / f"{IDENTITY}-{secrets.token_hex(8)}"
        own.write_text(secrets.token_hex(8), "ascii")
        with contextlib.suppress(FileExistsError):
            os.link(own, path)
        own.unlink()
    return path.read_text("ascii")


def _has(beat: Heartbeat, identity: str) -> bool:
    return beat.details.get("uploads") == identity


def _is_unlocked(path: str) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True

"""Shared memory of this host, cut into slots, in which tensors wait for Triton without being copied.

    /dev/shm/visionmesh-NONCE    a line for the arena, a line for each slot │ slot 0 │ slot 1 │ ...

An arena has one owner, the process that made it and alone leases its slots. A slot's line holds two numbers: the lease that its
owner wrote, and the last lease that was given back; the slot is free where they are equal. Whoever comes late with an older
lease changes nothing by giving it back, and can tell that the pixels are no longer his.

The owner holds a lock on the file for as long as it lives, so an arena that a kill -9 left behind is known by its open lock and
removed by whoever looks next (`Ownerless`). The kernel keeps the memory of a removed file for those who have it mapped.
"""

import contextlib
import ctypes
import fcntl
import mmap
import os
import secrets
import time
from pathlib import Path

import msgspec

FOLDER = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lies on Linux, and where Triton looks for it
PREFIX = "visionmesh-"
LINE_BYTES = 64
PAGE_BYTES = mmap.PAGESIZE
SLOTS_AT, SLOT_BYTES_AT = 0, 1
"""Fields of the arena's line, 8 bytes each; a slot's line begins with these two."""
LEASED_AT, GIVEN_BACK_AT = 0, 1

SPARED_SHARE, SPARED_MOST_BYTES = 0.25, 64 << 20
"""What slots leave of /dev/shm: Triton's Python backend and the regions of inference grow there as well, and without it Triton
refuses whole batches of good pictures."""

YOUNG_S = 1.0
"""A file this young may not have been locked yet by the process that makes it."""


class Slot(msgspec.Struct, frozen=True):
    """One lease of a slot, as it travels with a job: `arena:index:lease:size_bytes`."""

    arena: str
    index: int
    lease: int
    size_bytes: int

    def __str__(self) -> str:
        return f"{self.arena}:{self.index}:{self.lease}:{self.size_bytes}"

    @classmethod
    def parse(cls, text: str) -> "Slot":
        """The slot that was written as `text`."""
        arena, index, lease, size_bytes = text.split(":")
        return cls(arena, int(index), int(lease), int(size_bytes))


class _Memory:
    """An arena's file as this process has it mapped."""

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.size_bytes = os.fstat(descriptor).st_size
        self._memory = mmap.mmap(descriptor, self.size_bytes)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._words = memoryview(self._memory)[: self.size_bytes // 8 * 8].cast("Q")
        self.slots, self.slot_bytes = self._words[SLOTS_AT], self._words[SLOT_BYTES_AT]

    def offset(self, index: int) -> int:
        """Where a slot begins in the file."""
        return _head_bytes(self.slots) + index * self.slot_bytes

    def view(self, slot: Slot) -> memoryview:
        """A slot's bytes."""
        at = self.offset(slot.index)
        return memoryview(self._memory)[at : at + slot.size_bytes]

    def holds(self, slot: Slot) -> bool:
        """Whether the slot still has what this lease put there."""
        words, line = self._words, (1 + slot.index) * LINE_BYTES // 8
        leased, given_back = words[line + LEASED_AT], words[line + GIVEN_BACK_AT]
        return slot.index < self.slots and leased == slot.lease != given_back

    def give_back(self, slot: Slot) -> None:
        """Free the slot, if the lease is still its last."""
        self._words[(1 + slot.index) * LINE_BYTES // 8 + GIVEN_BACK_AT] = slot.lease

    @property
    def busy(self) -> int:
        """How many slots are leased."""
        lines = ((1 + index) * LINE_BYTES // 8 for index in range(self.slots))
        return sum(self._words[line + LEASED_AT] != self._words[line + GIVEN_BACK_AT] for line in lines)


class MappedArena(_Memory):
    """An arena of another process."""

    @classmethod
    def open(cls, name: str) -> "MappedArena":
        """Map an arena of this host.

        Raises:
            OSError: there is none of this name here.
        """
        if not name.startswith(PREFIX) or "/" in name:
            raise FileNotFoundError(name)
        descriptor = os.open(FOLDER / name, os.O_RDWR | os.O_CLOEXEC)
        try:
            return cls(name, descriptor)
        finally:
            os.close(descriptor)

    @property
    def exists(self) -> bool:
        """Whether its file is still there."""
        return (FOLDER / self.name).exists()


class Arena(_Memory):
    """An arena of this process.

    Raises:
        OSError: /dev/shm has no room even for the arena's lines.
    """

    def __init__(self, slot_bytes: int, slots: int) -> None:
        name = f"{PREFIX}{secrets.token_hex(8)}"
        self.path = FOLDER / name
        slot_bytes = -(-slot_bytes // PAGE_BYTES) * PAGE_BYTES
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._descriptor, _head_bytes(slots) + slots * slot_bytes)
            os.posix_fallocate(self._descriptor, 0, _head_bytes(slots))
            os.pwrite(self._descriptor, slots.to_bytes(8, "little") + slot_bytes.to_bytes(8, "little"), 0)
            super().__init__(name, self._descriptor)
        except BaseException:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            raise
        self._leases = 0
        self._backed = 0
        self._to_be_had = self.slots

    @property
    def free(self) -> int:
        """How many more slots can be leased, as far as is known."""
        return max(self._to_be_had - self.busy, 0)

    def lease(self, size_bytes: int) -> Slot | None:
        """A slot for so many bytes, the lowest that is free, for its memory is warm; `None` if there is none."""
        if size_bytes > self.slot_bytes:
            return None
        for index in range(self.slots):
            line = (1 + index) * LINE_BYTES // 8
            if self._words[line + LEASED_AT] == self._words[line + GIVEN_BACK_AT]:
                if index >= self._backed and not self._back(index):
                    return None
                self._leases += 1
                self._words[line + LEASED_AT] = self._leases
                return Slot(self.name, index, self._leases, size_bytes)
        return None

    def _back(self, index: int) -> bool:
        """Have the kernel set a slot's memory aside, so that a full /dev/shm shows here and not as a SIGBUS later."""
        try:
            is_spared = _room_bytes(self._descriptor) < self.slot_bytes
            if not is_spared:
                os.posix_fallocate(self._descriptor, self.offset(index), self.slot_bytes)
        except OSError:
            is_spared = True
        if is_spared:
            self._to_be_had = index
            return False
        self._backed = index + 1
        self._to_be_had = max(self._to_be_had, self._backed)
        return True

    def reopened(self) -> int:
        """A descriptor for a child; the lock does not go along with it. The caller closes it."""
        return os.open(self.path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, *, leave_busy: bool = False) -> None:
        """Remove it; with `leave_busy`, one whose slots are still wanted is left for `Ownerless` to remove later."""
        if not (leave_busy and self.busy):
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)


class Ownerless:
    """Removes arenas whose owners are gone: at once where no slot is leased, else after a time in which its jobs can end."""

    def __init__(self, grace_s: float = 60.0) -> None:
        self._grace_s = grace_s
        self._seen_s: dict[str, float] = {}

    def sweep(self) -> list[str]:
        """Look once; returns the names of those that were removed."""
        removed: list[str] = []
        names = {path.name for path in FOLDER.glob(f"{PREFIX}*")}
        self._seen_s = {name: seen_s for name, seen_s in self._seen_s.items() if name in names}
        for name in names:
            with contextlib.suppress(OSError):
                if self._is_ownerless(FOLDER / name):
                    first_s = self._seen_s.setdefault(name, time.monotonic())
                    if time.monotonic() - first_s >= self._grace_s or not MappedArena.open(name).busy:
                        (FOLDER / name).unlink()
                        removed.append(name)
        return removed

    @staticmethod
    def _is_ownerless(path: Path) -> bool:
        if time.time() - path.stat().st_ctime < YOUNG_S:
            return False
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True


def _room_bytes(descriptor: int) -> int:
    """How much more slots may take of the file system that this file is in."""
    system = os.fstatvfs(descriptor)
    spared_bytes = min(int(system.f_blocks * system.f_frsize * SPARED_SHARE), SPARED_MOST_BYTES)
    return system.f_bavail * system.f_frsize - spared_bytes


def _head_bytes(slots: int) -> int:
    return -(-(1 + slots) * LINE_BYTES // PAGE_BYTES) * PAGE_BYTES

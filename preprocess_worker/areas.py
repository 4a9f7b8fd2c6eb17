"""Where decoder children write tensors: memory of this worker's own, or slots of an arena that Triton reads as well.

Each child has both mapped, and is told area and offset with each picture. A place in the own memory is given back once its
tensor is in Redis; a slot of the arena goes with its job to inference and is given back there, or by `sharing.Sharing` when
the job ended otherwise.
"""

import fcntl
import os

import msgspec
import structlog

from preprocess_worker import wire
from shared.store.arena import Arena, Slot

OWN, SHARED = 0, 1
"""The areas in the order in which a child gets their descriptors."""

log = structlog.get_logger()


class Place(msgspec.Struct, frozen=True):
    """Where one tensor is written: `slot` in the arena, or no slot and an offset in the own memory."""

    area: int
    offset: int
    size_bytes: int
    slot: Slot | None = None


class TensorAreas:
    """Both areas. `sharing` says whether new tensors go to the arena, if there is one and it has room."""

    def __init__(self, arena: Arena | None = None) -> None:
        self.arena = arena
        self.sharing = False
        self._own = wire.Area(memfd("tensors"))
        self._own_end = 0
        self._own_free: dict[int, list[int]] = {}

    @property
    def free_slots(self) -> int | None:
        """How many more tensors the arena has room for; `None` while new ones do not go there."""
        return self.arena.free if self.sharing and self.arena else None

    def lease(self, size_bytes: int) -> Place:
        """A place for a tensor."""
        if self.sharing and self.arena and (slot := self.arena.lease(size_bytes)):
            return Place(SHARED, self.arena.offset(slot.index), size_bytes, slot)
        free = self._own_free.setdefault(size_bytes, [])
        if free:
            return Place(OWN, free.pop(), size_bytes)
        place = Place(OWN, self._own_end, size_bytes)
        self._own_end += size_bytes
        self._own.view(self._own_end)  # grows it before a child looks
        return place

    def view(self, place: Place) -> memoryview:
        """The bytes of a place."""
        if place.slot and self.arena:
            return self.arena.view(place.slot)
        return self._own.view(place.offset + place.size_bytes)[place.offset :]

    def give_back(self, place: Place) -> None:
        """Free a place that nobody writes to or reads from any more."""
        if place.slot and self.arena:
            self.arena.give_back(place.slot)
        else:
            self._own_free[place.size_bytes].append(place.offset)

    def descriptors(self) -> list[int]:
        """Descriptors of the areas for a child; the caller closes them once they were sent."""
        return [os.dup(self._own.descriptor), *([self.arena.reopened()] if self.arena else [])]

    def close(self) -> None:
        """Let go of both; slots that inference still wants stay readable."""
        os.close(self._own.descriptor)
        if self.arena:
            self.arena.close(leave_busy=True)


def memfd(name: str) -> int:
    """Memory without a name, to be shared with a child."""
    descriptor = os.memfd_create(f"visionmesh-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    # A child that was taken over could otherwise shrink the file and have this process die of SIGBUS.
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return descriptor


def make_arena(tensor_bytes: int, slots: int) -> Arena | None:
    """An arena for tensors up to this size, or `None` with a line in the log where /dev/shm does not give one."""
    try:
        return Arena(tensor_bytes, slots)
    except OSError as error:
        log.warning("arena.not_made", error=str(error))
        return None

"""Shared memory between this worker and its Triton: what lies where, as offsets into regions that Triton knows by name.

A tensor that a decoder wrote into an arena is sent to Triton as its place there. A batch of several, or tensors that came
through Redis, are gathered in a slot of an arena of our own, which costs a copy but no serialization; the outputs come back
in a slot as well. A slot whose request was given up is never used again: Triton may still write to it.
"""

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import structlog

from inference_worker.runtime import Array
from shared.store.arena import Arena, MappedArena, Slot

SLOTS = 16
"""Slots of one staging arena: the batches in flight, their outputs, and what was given up."""

LEAST_BYTES = 1 << 16
"""Staging arenas come in sizes of powers of two from here on, so that batches of all sizes need only a few."""

log = structlog.get_logger()


class Place(NamedTuple):
    """Bytes of a region that Triton has, or can have, registered."""

    region: str
    region_bytes: int
    offset: int
    size_bytes: int


class Staged:
    """A slot of our own, for one request."""

    def __init__(self, arena: Arena, slot: Slot) -> None:
        self.arena = arena
        self.slot = slot
        self.place = Place(arena.name, arena.size_bytes, arena.offset(slot.index), slot.size_bytes)

    def arrays(self, layout: Sequence[tuple[np.dtype[Any], tuple[int, ...]]]) -> list[Array]:
        """The outputs that lie here one behind the other; the slot is free again when the last array is gone."""
        held = (ctypes.c_char * self.slot.size_bytes).from_buffer(self.arena.view(self.slot))
        weakref.finalize(held, self.arena.give_back, self.slot)
        found: list[Array] = []
        at = 0
        for dtype, shape in layout:
            count = int(np.prod(shape))
            found.append(np.frombuffer(memoryview(held), dtype, count, at).reshape(shape))
            at += aligned(count * dtype.itemsize)
        return found

    def give_back(self) -> None:
        """Free the slot: its request has been answered."""
        self.arena.give_back(self.slot)


class Regions:
    """Finds and makes places. `mapped` are the arenas of preprocess workers by name, as they come and go."""

    def __init__(self, mapped: Mapping[str, MappedArena]) -> None:
        self._mapped = mapped
        self._staging: dict[int, Arena] = {}
        self.probe = Arena(1, 1)
        """A region that is there from the start, for finding out whether Triton shares this host's memory."""

    @property
    def staging(self) -> list[Arena]:
        """The arenas of our own in which batches and outputs are staged."""
        return list(self._staging.values())

    def place_of(self, image: bytes | memoryview) -> Place | None:
        """Where a tensor lies, if that is in an arena; found by its address."""
        if isinstance(image, bytes):
            return None
        address, size_bytes = _address(image), len(image)
        for name, arena in self._mapped.items():
            offset = address - arena.address
            if 0 <= offset <= arena.size_bytes - size_bytes:
                return Place(name, arena.size_bytes, offset, size_bytes)
        return None

    def stage(self, size_bytes: int) -> Staged | None:
        """A slot of our own for so many bytes; `None` if /dev/shm gives none."""
        slot_bytes = max(1 << (size_bytes - 1).bit_length(), LEAST_BYTES)
        arena = self._staging.get(slot_bytes)
        slot = arena.lease(size_bytes) if arena else None
        if arena and slot:
            return Staged(arena, slot)
        try:
            # The first, or in place of one whose slots are all given up; that one lives until its last array is gone.
            if arena:
                arena.close()
            arena = self._staging[slot_bytes] = Arena(slot_bytes, SLOTS)
        except OSError as error:
            self._staging.pop(slot_bytes, None)
            log.warning("staging.not_made", error=str(error))
            return None
        slot = arena.lease(size_bytes)
        return Staged(arena, slot) if slot else None

    def gather(self, images: Sequence[bytes | memoryview]) -> Staged | None:
        """Copy the tensors of a batch, all of one size, one behind the other."""
        each = len(images[0])
        staged = self.stage(each * len(images))
        if staged:
            target = staged.arena.view(staged.slot)
            for number, image in enumerate(images):
                target[number * each : (number + 1) * each] = image
        return staged

    def close(self) -> None:
        """Remove our arenas."""
        for arena in (self.probe, *self._staging.values()):
            arena.close()
        self._staging.clear()


def aligned(size_bytes: int) -> int:
    """The next multiple of 64, at which an output begins."""
    return -(-size_bytes // 64) * 64


def _address(image: memoryview) -> int:
    return int(np.frombuffer(image, np.uint8).__array_interface__["data"][0])

"""How far decoders may be ahead of inference: more would take memory and get no result any sooner.

waiting tensors of all workers, asked of Redis ─┐
free slots of this worker's arena, looked at ───┴─▶ how many jobs may be taken
"""

import asyncio
import sys
import time

from preprocess_worker.areas import TensorAreas
from shared.errors import StoreUnavailable
from shared.live_registry import LiveRegistry
from shared.settings import Settings
from shared.store import Store

LOOK_S = 0.1
"""How often the queues of inference are looked at."""

SLOTS_LOOK_S = 0.005
"""How often a full arena is looked at."""

PATIENCE_S = 1.0
"""A full arena from which nothing is given back for so long belongs to a model that stands still: it must not hold up others,
whose tensors go to Redis then."""

UNBOUNDED = sys.maxsize


class Room:
    """What is left of it, as seen when it last looked."""

    def __init__(
        self, settings: Settings, registry: LiveRegistry, store: Store, areas: TensorAreas, patience_s: float = PATIENCE_S
    ) -> None:
        self._most = settings.max_waiting_tensors
        self._registry = registry
        self._store = store
        self._areas = areas
        self._patience_s = patience_s
        self._patient_until_s = time.monotonic() + patience_s
        self._in_queues, self._look_at_s = 0, 0.0

    def take(self) -> None:
        """A job was taken."""
        self._in_queues -= 1

    async def wait(self, in_hand: int, stop: asyncio.Event) -> int:
        """Wait until there is room for a job besides those `in_hand`, or `stop`; returns for how many."""
        while not stop.is_set():
            if self._in_queues <= 0 or time.monotonic() >= self._look_at_s:
                try:
                    waiting = await self._store.waiting_tensors(self._registry.now.served)
                except StoreUnavailable:
                    return 1  # the take that follows tells of it, and waits
                self._in_queues = self._most - waiting - in_hand
                self._look_at_s = time.monotonic() + LOOK_S
            if (room := min(self._in_queues, self._in_slots(in_hand))) > 0:
                return room
            await asyncio.sleep(SLOTS_LOOK_S if self._in_queues > 0 else LOOK_S)
        return 0

    def _in_slots(self, in_hand: int) -> int:
        """Tensors past the arena's slots would be written to Redis and read back, which costs more than the wait."""
        free = self._areas.free_slots
        if free is None:
            return UNBOUNDED
        now_s = time.monotonic()
        if free > in_hand:
            self._patient_until_s = now_s + self._patience_s
            return free - in_hand
        return 0 if now_s < self._patient_until_s else UNBOUNDED

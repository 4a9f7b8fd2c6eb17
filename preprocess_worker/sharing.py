"""Whether tensors may go by shared memory, found out by a probe; and what becomes of slots whose jobs ended elsewhere.

An inference worker that had its Triton register a region of its own says so in its heartbeat, with the region's name. Where
each live inference worker says so, and each region is also here in /dev/shm, all of them and their Tritons share memory with
this worker. A worker that appears later elsewhere has what it cannot reach decoded again; by then this probe says no.
"""

import asyncio
from typing import Any

import structlog

from preprocess_worker.areas import TensorAreas
from shared.errors import MeshError
from shared.messages import Ticket
from shared.settings import Settings
from shared.store import Store
from shared.store.arena import FOLDER, PREFIX, Ownerless, Slot

log = structlog.get_logger()


class Sharing:
    """The upkeep of a worker's arena."""

    def __init__(self, settings: Settings, store: Store, areas: TensorAreas) -> None:
        self.last_error: str | None = None
        self._settings = settings
        self._store = store
        self._areas = areas
        self._ownerless = Ownerless()
        self._handed_on: dict[Slot, Ticket] = {}

    @property
    def kind(self) -> str:
        """`shm` or `redis`: where the next tensor goes."""
        return "shm" if self._areas.sharing else "redis"

    def handed_on(self, slot: Slot, ticket: Ticket) -> None:
        """A slot went with its job, or may have: from now on the job's state says whether it is still wanted."""
        self._handed_on[slot] = ticket

    async def keep_up(self) -> None:
        """Probe and sweep, as often as the heartbeats tell. Runs for ever."""
        while True:
            try:
                await self.probe()
                await self.sweep()
            except MeshError as error:
                log.warning("sharing.not_checked", error=error.detail)
            await asyncio.sleep(self._settings.heartbeat_s if self._areas.sharing else self._settings.heartbeat_s / 4)

    async def probe(self) -> None:
        """Look once whether all inference workers share this host's memory."""
        if self._areas.arena is None or self._settings.tensor_store == "redis":
            return
        beats = [beat for beat in await self._store.heartbeats.live() if beat.kind == "inference"]
        shared = bool(beats) and all(_is_here(beat.details) for beat in beats)
        if shared != self._areas.sharing:
            log.info("sharing.changed", tensor_store="shm" if shared else "redis", inference_workers=len(beats))
        if not shared and beats and self._settings.tensor_store == "shm":
            self.last_error = "shared-memory: an inference worker or its Triton does not share this host's /dev/shm"
            log.error("sharing.impossible", error=self.last_error)
        else:
            self.last_error = None
        self._areas.sharing = shared

    async def sweep(self) -> None:
        """Free the slots of jobs that ended without an inference worker giving them back."""
        self._ownerless.sweep()
        arena = self._areas.arena
        if arena is None:
            return
        self._handed_on = {slot: ticket for slot, ticket in self._handed_on.items() if arena.holds(slot)}
        waiting = list(self._handed_on.items())
        if not waiting:
            return
        wanted = await self._store.claims.slots_of([ticket for _, ticket in waiting])
        for (slot, _), now_in in zip(waiting, wanted, strict=True):
            if now_in != str(slot):
                arena.give_back(slot)


def _is_here(details: dict[str, Any]) -> bool:
    name = str(details.get("shm_probe", ""))
    return details.get("tensor_store") == "shm" and name.startswith(PREFIX) and "/" not in name and (FOLDER / name).exists()

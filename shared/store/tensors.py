"""Letterboxed pictures on their way from preprocess to inference worker.

One small interface over two forms: a string in Redis, for workers anywhere, or a slot of a preprocess worker's arena
(`shared.store.arena`), for workers that share a host with their Triton. A tensor's name carries the fence of the attempt that
wrote it, a slot its lease. A slot's pixels die with the host, so the upload of such a job is kept until the job has ended, and
whoever cannot reach them has the picture decoded again.
"""

import contextlib
from collections.abc import Sequence
from typing import Protocol

from shared.messages import Ticket
from shared.store.arena import MappedArena, Slot
from shared.store.connection import Command, Connection
from shared.store.packing import Pieces

Tensor = bytes | memoryview


class TensorStore(Protocol):
    """Where tensors lie."""

    def put(self, name: str, tensor: Tensor, ttl_ms: int) -> Command:
        """The command that stores a tensor, to be sent along with the job's transition."""
        ...

    async def get_many(self, tickets: Sequence[Ticket]) -> list[Tensor | None]:
        """The tensors of these jobs in order; `None` where one is gone or out of reach."""
        ...


class RedisTensors:
    """Tensors as strings in Redis."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def put(self, name: str, tensor: Tensor, ttl_ms: int) -> Command:
        """`SET` with a TTL from birth."""
        # Bytes, as the pixels that a view shows may be others by the time they are sent.
        return ("SET", name, Pieces(bytes(tensor)), "PX", ttl_ms)

    async def get_many(self, tickets: Sequence[Ticket]) -> list[Tensor | None]:
        """All in one round trip."""
        return await self._connection.run(*(("GET", ticket.tensor or "") for ticket in tickets)) if tickets else []


class Tensors(RedisTensors):
    """Both forms: what a ticket names a slot for is read where it lies."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.arenas: dict[str, MappedArena] = {}
        """The arenas of preprocess workers on this host that have sent something."""

    async def get_many(self, tickets: Sequence[Ticket]) -> list[Tensor | None]:
        """Slots as views of shared memory, the rest in one round trip."""
        stored = iter(await super().get_many([ticket for ticket in tickets if not ticket.slot]))
        return [self._view(ticket) if ticket.slot else next(stored) for ticket in tickets]

    def holds(self, ticket: Ticket) -> bool:
        """Whether a tensor that was got is still this job's; looked at once more after it was used."""
        if not ticket.slot:
            return True
        slot = Slot.parse(ticket.slot)
        arena = self._arena(slot.arena)
        return arena is not None and arena.holds(slot)

    def give_back(self, ticket: Ticket) -> None:
        """Free the slot of a job that this worker has ended, and of no other: somebody may be reading it."""
        if ticket.slot:
            slot = Slot.parse(ticket.slot)
            if arena := self._arena(slot.arena):
                arena.give_back(slot)

    def forget_removed(self) -> None:
        """Unmap the arenas whose files are gone."""
        for name in [name for name, arena in self.arenas.items() if not arena.exists]:
            del self.arenas[name]

    def _view(self, ticket: Ticket) -> memoryview | None:
        slot = Slot.parse(ticket.slot)
        arena = self._arena(slot.arena)
        return arena.view(slot) if arena and arena.holds(slot) else None

    def _arena(self, name: str) -> MappedArena | None:
        if name not in self.arenas:
            with contextlib.suppress(OSError):
                self.arenas[name] = MappedArena.open(name)
        return self.arenas.get(name)

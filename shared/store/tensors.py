"""Letterboxed pictures on their way from preprocess to inference worker.

One small interface, so that tensors may lie elsewhere than in Redis (a same-host shared-memory arena). A tensor's name
carries the fence of the attempt that wrote it.
"""

from collections.abc import Sequence
from typing import Protocol

from shared.messages import Ticket
from shared.store.connection import Command, Connection


class TensorStore(Protocol):
    """Where tensors lie."""

    def put(self, name: str, tensor: bytes | memoryview, ttl_ms: int) -> Command:
        """The command that stores a tensor, to be sent along with the job's transition."""
        ...

    async def get_many(self, tickets: Sequence[Ticket]) -> list[bytes | None]:
        """The tensors of these jobs in order; `None` where one is gone."""
        ...


class RedisTensors:
    """Tensors as strings in Redis: workers may run anywhere."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def put(self, name: str, tensor: bytes | memoryview, ttl_ms: int) -> Command:
        """`SET` with a TTL from birth."""
        return ("SET", name, tensor, "PX", ttl_ms)

    async def get_many(self, tickets: Sequence[Ticket]) -> list[bytes | None]:
        """All in one round trip."""
        return await self._connection.run(*(("GET", ticket.tensor or "") for ticket in tickets))

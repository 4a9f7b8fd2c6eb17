"""The byte budget: how much of Redis' memory accepted and staged work may take.

`MESH_BYTE_BUDGET` names it, or it is 70% of Redis' `maxmemory`; the rest is for results, queues and copy-on-write.
The books themselves are kept by the scripts (`lua/_budget.lua`).
"""

import time

import msgspec

from shared.store import keys
from shared.store.connection import Connection

SHARE_OF_MAXMEMORY = 0.7
WITHOUT_MAXMEMORY_BYTES = 2 * 1024**3
REFRESH_S = 30.0


class Budget(msgspec.Struct, frozen=True):
    """Bytes reserved now, of those that may be."""

    reserved_bytes: int
    limit_bytes: int


class ByteBudget:
    """Reads the limit once in a while; an operator may change `maxmemory` while the mesh runs."""

    def __init__(self, connection: Connection, configured_bytes: int, partitions: int) -> None:
        self._connection = connection
        self._configured_bytes = configured_bytes
        self._partitions = partitions
        self._limit_bytes = configured_bytes
        self._read_at_s = float("-inf")

    async def limit_bytes(self) -> int:
        """The limit of one partition."""
        if self._configured_bytes:
            return self._configured_bytes // self._partitions
        if time.monotonic() - self._read_at_s > REFRESH_S:
            memory = await self._connection.info("memory")
            maximum = int(memory.get("maxmemory", 0))
            self._limit_bytes = int(maximum * SHARE_OF_MAXMEMORY) if maximum else WITHOUT_MAXMEMORY_BYTES
            self._read_at_s = time.monotonic()
        return self._limit_bytes // self._partitions

    async def read(self) -> Budget:
        """What is reserved over all partitions, and the limit."""
        limit = await self.limit_bytes()
        totals = await self._connection.run(*(("HGET", keys.reserved(partition), "") for partition in range(self._partitions)))
        return Budget(sum(int(total or 0) for total in totals), limit * self._partitions)

"""The byte budget: how much of Redis' memory accepted and staged work may take.

`MESH_BYTE_BUDGET` names it, or it is 70% of Redis' `maxmemory`; the rest is for results, queues and copy-on-write. In a
cluster each primary has a `maxmemory` of its own: all partitions get the share of those on the fullest primary.
The books themselves are kept by the scripts (`lua/_budget.lua`).
"""

import time
from collections import Counter
from collections.abc import Mapping

import msgspec

from shared.errors import StoreUnavailable
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
            try:
                self._limit_bytes = await self._least_bytes() * self._partitions
            except StoreUnavailable:  # one primary of several is enough for that
                if not self._limit_bytes:
                    raise
            self._read_at_s = time.monotonic()
        return self._limit_bytes // self._partitions

    async def _least_bytes(self) -> int:
        """What each partition may take on the primary that has least memory for each of its own."""
        memories = await self._connection.info("memory")
        holds = Counter(self._connection.address_of(keys.live(partition)) for partition in range(self._partitions))
        return min(_may_take(memories.get(address, {})) // partitions for address, partitions in holds.items())

    async def read(self) -> Budget:
        """What is reserved over all partitions, and the limit."""
        limit = await self.limit_bytes()
        totals = await self._connection.run(*(("HGET", keys.reserved(partition), "") for partition in range(self._partitions)))
        return Budget(sum(int(total or 0) for total in totals), limit * self._partitions)


def _may_take(memory: Mapping[str, str]) -> int:
    """Bytes of accepted work that a Redis may hold, by the section `memory` of its INFO."""
    maximum = int(memory.get("maxmemory", 0))
    return int(maximum * SHARE_OF_MAXMEMORY) if maximum else WITHOUT_MAXMEMORY_BYTES

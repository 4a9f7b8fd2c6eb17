"""The streams of results: one on a single Redis, one per partition in a cluster, where a script keeps to one partition."""

from typing import Any

from redis.exceptions import ResponseError

from shared.store import keys
from shared.store.connection import Connection

_COUNT = "count"


async def tell(connection: Connection, partitions: int) -> None:
    """Leave in a cluster how many partitions there are, for those who read results and have no settings; the most counts.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    if connection.is_cluster:
        await connection.run_one("ZADD", keys.PARTITIONS, "GT", partitions, _COUNT)


async def names(connection: Connection) -> list[str]:
    """All streams that results are told in, in the order of the partitions.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    await connection.find_out()
    if not connection.is_cluster:
        return [keys.RESULTS_STREAM]
    count = await connection.alone("partitions", 0.0, "ZSCORE", keys.PARTITIONS, _COUNT)
    return [keys.results(partition, in_cluster=True) for partition in range(int(count or 1))]


class ResultStream:
    """One of them, read alone or as `consumer` of a `group`, on a connection of its own.

    All methods raise what `Connection.alone` does, and redis.exceptions.ResponseError for a position that is none.
    """

    def __init__(self, connection: Connection, name: str, group: str = "", consumer: str = "") -> None:
        self._connection = connection
        self._name = name
        self._group = group
        self._reading = ["XREADGROUP", "GROUP", group, consumer] if group else ["XREAD"]
        self._consumer = consumer

    async def make_group(self, after: str) -> None:
        """Make the group, behind this entry, unless there is one."""
        await self._connection.make_group(self._name, self._group, after)

    async def last_id(self) -> str:
        """The newest entry's ID; `0` if there is none."""
        newest = await self._ask(0.0, "XREVRANGE", self._name, "+", "-", "COUNT", 1)
        return bytes(newest[0][0]).decode() if newest else "0"

    async def read(self, position: str, at_most: int, block_s: float) -> list[tuple[str, bytes]]:
        """Entries behind `position`, waiting up to `block_s` for one: IDs and payloads, empty where the cap dropped one."""
        answer = await self._ask(
            block_s, *self._reading, "COUNT", at_most, "BLOCK", int(block_s * 1000), "STREAMS", self._name, position
        )
        return _entries(answer[0][1]) if answer else []

    async def claim(self, idle_s: float, at_most: int) -> list[tuple[str, bytes]]:
        """Take over what other consumers have held for so long."""
        answer = await self._ask(
            0.0, "XAUTOCLAIM", self._name, self._group, self._consumer, int(idle_s * 1000), "0-0", "COUNT", at_most
        )
        return _entries(answer[1])

    async def acknowledge(self, entry_id: str) -> None:
        """Say that an entry was dealt with."""
        await self._ask(0.0, "XACK", self._name, self._group, entry_id)

    async def _ask(self, block_s: float, *command: Any) -> Any:
        return await self._connection.alone(f"results {self._name}", block_s, *command)


def is_no_position(error: ResponseError) -> bool:
    """Whether Redis says that what it was given is no entry's ID."""
    return "Invalid stream ID" in str(error)


def _entries(raw: list[Any]) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for entry in raw:
        fields: list[Any] = entry[1] or []
        pairs = dict(zip(fields[::2], fields[1::2], strict=True))
        found.append((bytes(entry[0]).decode(), pairs.get(b"job", b"")))
    return found

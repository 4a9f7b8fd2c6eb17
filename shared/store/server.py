"""One Redis: the links that its commands share, and one for each blocking reader."""

from collections.abc import Sequence
from typing import Any

from redis.asyncio.connection import Connection as PlainConnection
from redis.asyncio.connection import ConnectionPool, UnixDomainSocketConnection

from shared.store.lanes import Lanes
from shared.store.link import Link

COMMAND_TIMEOUT_S = 5.0


class Server:
    """The links to one Redis, each made when it is first needed. `pool` tells where to, and is not used otherwise."""

    def __init__(self, pool: ConnectionPool) -> None:
        self.pool = pool
        self.has_scripts = False
        self._lanes = Lanes(pool)
        self._readers: dict[str, Link] = {}

    def neighbour(self, host: str, port: int) -> "Server":
        """Another Redis that is reached as this one is: with its user, its password, its TLS."""
        kind = self.pool.connection_class
        pool = ConnectionPool(PlainConnection if issubclass(kind, UnixDomainSocketConnection) else kind)
        pool.connection_kwargs = self.pool.connection_kwargs | {"host": host, "port": port}
        pool.connection_kwargs.pop("path", None)
        return Server(pool)

    @property
    def host(self) -> str:
        """Its name or address; empty for a unix socket."""
        return str(self.pool.connection_kwargs.get("host", ""))

    @property
    def address(self) -> str:
        """For people."""
        return f"{self.host}:{self.pool.connection_kwargs.get('port', '')}" if self.host else "unix socket"

    async def send(self, commands: Sequence[Sequence[Any]], timeout_s: float = COMMAND_TIMEOUT_S) -> list[Any]:
        """Send commands in one round trip; see `Lanes.send`."""
        return await self._lanes.send(commands, timeout_s)

    async def read(self, reader: str, wait_s: float, command: Sequence[Any]) -> Any:
        """Send one command that may block for `wait_s`, on the link that is this reader's own."""
        link = self._readers.get(reader) or self._readers.setdefault(reader, Link(self.pool))
        (answer,) = await link.send([command], wait_s + COMMAND_TIMEOUT_S)
        return answer

    def close(self) -> None:
        """Cut all links; they may be used again."""
        for link in (self._lanes, *self._readers.values()):
            link.close()

"""The way to Redis: its connections, the scripts, and typed errors for when it is away.

`connect(settings)` gives a `Store`, the only thing the services hold. Commands run through `Connection`, which maps
whatever Redis or the network does to `StoreUnavailable` or `Overloaded`, so that no caller needs to know redis-py. Whether
the URL leads to one Redis or to a node of a Redis Cluster is found out at the start; with a cluster, `Cluster` finds the way.
"""

import asyncio
import hashlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from redis.asyncio import Redis
from redis.asyncio.connection import ConnectionPool
from redis.exceptions import (
    BusyLoadingError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.errors import Overloaded, StoreUnavailable
from shared.settings import Settings
from shared.store.cluster import Cluster
from shared.store.server import COMMAND_TIMEOUT_S, Server

Command = tuple[Any, ...]
"""A Redis command with its arguments, or `Script` call made by `Connection.call`."""

_LUA = Path(__file__).with_name("lua")
_NOT_NOW = ("MASTERDOWN", "CLUSTERDOWN", "UNBLOCKED", "TRYAGAIN", "MOVED", "ASK ", "NOREPLICAS", "MISCONF")
"""What Redis says when somebody else is the one to ask, or it later: for want of a replica or of room on its disk."""


class UnknownGroup(ResponseError):
    """A queue has no consumer group: Redis was emptied."""


class Script:
    """A Lua script by name, with the functions that scripts share (`_*.lua`) put in behind its first line."""

    def __init__(self, name: str) -> None:
        head, body = (_LUA / f"{name}.lua").read_text("utf-8").split("\n", 1)
        self.name = name
        shared = "\n".join(path.read_text("utf-8") for path in sorted(_LUA.glob("_*.lua")))
        self.text = f"{head}\n{shared}\n{body}"
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


@contextmanager
def typed_errors() -> Generator[None]:
    """Turn what redis-py raises into the errors of the mesh.

    Raises:
        UnknownGroup: a consumer group is gone.
        Overloaded: Redis has no memory left.
        StoreUnavailable: Redis is away, loading, read-only, or broken.
    """
    try:
        yield
    except OutOfMemoryError:
        raise Overloaded("the store has no memory left", retry_after_s=2) from None
    except ResponseError as error:
        if "OOM" in str(error):
            raise Overloaded("the store has no memory left", retry_after_s=2) from None
        if isinstance(error, BusyLoadingError | ReadOnlyError) or str(error).startswith(_NOT_NOW):
            raise StoreUnavailable(f"the store is not ready: {error}", retry_after_s=2) from None
        if str(error).startswith("NOGROUP"):
            raise UnknownGroup(str(error)) from None
        raise
    except RuntimeError as error:
        # uvloop's way to say that a connection was closed between our look at it and our write.
        if "closed" not in str(error):
            raise
        raise StoreUnavailable("the store does not answer: the connection was cut", retry_after_s=2) from None
    except (RedisConnectionError, RedisTimeoutError, OSError, TimeoutError) as error:
        raise StoreUnavailable(f"the store does not answer: {error}", retry_after_s=2) from None


def with_authority(url: str, ca: str) -> str:
    """The URL of a Redis over TLS, with the file of the authorities that its certificate is checked against."""
    if not ca or not url.startswith("rediss://"):
        return url
    return f"{url}{'&' if '?' in url else '?'}ssl_ca_certs={quote(ca)}"


class Connection:
    """Links to Redis, for small commands, for large ones and for each blocking reader, and the scripts that run there."""

    def __init__(self, settings: Settings) -> None:
        self._url = with_authority(settings.redis_url, settings.redis_ca)
        self._home = Server(ConnectionPool.from_url(self._url, socket_connect_timeout=COMMAND_TIMEOUT_S))
        self._cluster: Cluster | None = None
        self._is_known = False
        self._scripts = {path.stem: Script(path.stem) for path in _LUA.glob("*.lua") if not path.stem.startswith("_")}
        self._loading = asyncio.Lock()

    @property
    def is_cluster(self) -> bool:
        """Whether this is a Redis Cluster; known once anything was answered."""
        return self._cluster is not None

    def call(self, script: str, keys: Sequence[str], *args: Any) -> Command:
        """A call of a script as a command for `run`; its SHA is filled in there."""
        return (self._scripts[script], len(keys), *keys, *args)

    async def run(self, *commands: Command) -> list[Any]:
        """Send commands in one round trip and return their answers.

        Raises:
            Overloaded, StoreUnavailable: see `typed_errors`.
        """
        with typed_errors():
            if not self._is_known:
                await self.find_out()
            plain = [
                ("EVALSHA", first.sha, *rest) if isinstance(first, Script) else (first, *rest) for first, *rest in commands
            ]
            answers = await (self._cluster.send(plain) if self._cluster else self._send(plain))
            for answer in answers:
                if isinstance(answer, RedisError):
                    raise answer
            return answers

    async def run_one(self, *command: Any) -> Any:
        """Send one plain command."""
        return (await self.run(command))[0]

    async def find_out(self) -> None:
        """Ask whether this is a Redis Cluster, and for its map, unless that is known.

        Raises:
            StoreUnavailable: there is no answer, or not yet.
        """
        if self._is_known:
            return
        with typed_errors():
            (answer,) = await self._home.send([("CLUSTER", "SLOTS")])
            if isinstance(answer, Exception):
                # ERR: it is none. NOPERM: whoever may not ask is told MOVED if it is one, see `_send`.
                if not str(answer).startswith(("ERR", "NOPERM")):
                    raise answer
            else:
                self._cluster = self._cluster or Cluster(self._home, self._load)
                self._cluster.learn(answer, self._home)
            self._is_known = True

    def listener(self, check_s: int = 10) -> Redis:
        """A client of its own for pub/sub, which waits for ever, so without a read timeout; the caller closes it.

        In a cluster any server will do: each hears what is published at any other.
        """
        pool = self._cluster.any_server().pool if self._cluster else self._home.pool
        own = ConnectionPool(
            connection_class=pool.connection_class, **(pool.connection_kwargs | {"health_check_interval": check_s})
        )
        return Redis.from_pool(own)

    async def make_group(self, stream: str, group: str, after: str = "0") -> None:
        """Create a consumer group, and its stream, unless they exist."""
        try:
            await self.alone("groups", 0.0, "XGROUP", "CREATE", stream, group, after, "MKSTREAM")
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def read_group(self, reader: str, wait_s: float, *command: Any) -> Any:
        """A raw read of a consumer group; `[]` when nothing came, `None` when the group does not exist.

        `reader` names who reads: he has a connection of his own, which such a read may block for `wait_s`.
        """
        try:
            return await self.alone(reader, wait_s, *command) or []
        except UnknownGroup:
            return None

    async def alone(self, reader: str, wait_s: float, *command: Any) -> Any:
        """Send a plain command that may block for `wait_s`, on the connection of this reader.

        Raises:
            UnknownGroup, Overloaded, StoreUnavailable: see `typed_errors`.
        """
        await self.find_out()
        with typed_errors():
            answer = await (self._cluster or self._home).read(reader, wait_s, command)
            if isinstance(answer, RedisError):
                self._heed(answer)
                raise answer
            return answer

    async def info(self, section: str) -> dict[str, dict[str, str]]:
        """One section of INFO of each primary, by its address."""
        await self.find_out()
        with typed_errors():
            found: dict[str, dict[str, str]] = {}
            for server in self._cluster.primaries if self._cluster else [self._home]:
                (answer,) = await server.send([("INFO", section)])
                if isinstance(answer, RedisError):
                    raise answer
                found[server.address] = dict(line.split(":", 1) for line in bytes(answer).decode().splitlines() if ":" in line)
            return found

    def address_of(self, key: str) -> str:
        """The address of the Redis that holds a key.

        Raises:
            StoreUnavailable: none does at present.
        """
        with typed_errors():
            return (self._cluster.server_of(key) if self._cluster else self._home).address

    def is_away(self, key: str) -> bool:
        """Whether the primary that holds a key did not answer a moment ago, while others may. Never, with one Redis."""
        return self._cluster is not None and self._cluster.is_away(key)

    async def _send(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """What there is to one Redis."""
        if not self._home.has_scripts:
            await self._load(self._home)
        answers = await self._home.send(commands)
        for answer in answers:
            if isinstance(answer, NoScriptError):
                # Redis was restarted or its scripts flushed. Every script refuses to act twice, so all can be sent again.
                self._home.has_scripts = False
                await self._load(self._home)
                return await self._home.send(commands)
            if isinstance(answer, ResponseError):
                self._heed(answer)
        return answers

    def _heed(self, error: RedisError) -> None:
        """Look again who is there, if this is no longer the Redis to ask: one that was made a replica keeps its connections."""
        if self._cluster is None and str(error).startswith(("MOVED", "READONLY", "UNBLOCKED")):
            self._is_known = False
            self._home.close()

    async def _load(self, server: Server) -> None:
        """Load the scripts into a server.

        Raises:
            redis.exceptions.RedisError: it has none of them now.
        """
        async with self._loading:
            if server.has_scripts:
                return
            for answer in await server.send([("SCRIPT", "LOAD", script.text) for script in self._scripts.values()]):
                if isinstance(answer, RedisError):
                    raise answer
            server.has_scripts = True

    async def close(self) -> None:
        """Close all connections."""
        if self._cluster:
            self._cluster.close()
        self._home.close()

"""The way to Redis: its connections, the scripts, and typed errors for when it is away.

`connect(settings)` gives a `Store`, the only thing the services hold. Commands run through `Connection`, which maps
whatever Redis or the network does to `StoreUnavailable` or `Overloaded`, so that no caller needs to know redis-py.
"""

import asyncio
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from redis.asyncio import BlockingConnectionPool, Redis
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
from shared.store.lanes import Lanes
from shared.store.link import Link

POOL_CONNECTIONS = 64
COMMAND_TIMEOUT_S = 5.0

Command = tuple[Any, ...]
"""A Redis command with its arguments, or `Script` call made by `Connection.call`."""

_LUA = Path(__file__).with_name("lua")


class UnknownGroup(ResponseError):
    """A queue has no consumer group: Redis was emptied."""


class Script:
    """A Lua script by name, with the functions that scripts share (`_*.lua`) put in behind its first line."""

    def __init__(self, name: str) -> None:
        head, body = (_LUA / f"{name}.lua").read_text("utf-8").split("\n", 1)
        self.name = name
        shared = "\n".join(path.read_text("utf-8") for path in sorted(_LUA.glob("_*.lua")))
        self.text = f"{head}\n{shared}\n{body}"
        self.sha = ""


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
        if isinstance(error, BusyLoadingError | ReadOnlyError) or str(error).startswith(("MASTERDOWN", "CLUSTERDOWN")):
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
        self._pool = BlockingConnectionPool.from_url(
            self._url,
            max_connections=POOL_CONNECTIONS,
            timeout=COMMAND_TIMEOUT_S,
            socket_timeout=COMMAND_TIMEOUT_S,
            socket_connect_timeout=COMMAND_TIMEOUT_S,
        )
        self.redis: Redis = Redis(connection_pool=self._pool)
        # Answers are taken raw: what redis-py makes of them (dicts of dicts) would be unmade again here.
        self.redis.response_callbacks.clear()
        self._scripts = {path.stem: Script(path.stem) for path in _LUA.glob("*.lua") if not path.stem.startswith("_")}
        self._is_loaded = False
        self._loading = asyncio.Lock()
        self._lanes = Lanes(self._pool)
        self._readers: dict[str, Link] = {}

    def call(self, script: str, keys: Sequence[str], *args: Any) -> Command:
        """A call of a script as a command for `run`; its SHA is filled in there."""
        return (self._scripts[script], len(keys), *keys, *args)

    async def run(self, *commands: Command) -> list[Any]:
        """Send commands in one round trip and return their answers.

        Raises:
            Overloaded, StoreUnavailable: see `typed_errors`.
        """
        with typed_errors():
            await self._load()
            answers = await self._send(commands)
            # Redis was restarted or its scripts flushed. Every script refuses to act twice, so all can be sent again.
            if any(isinstance(answer, NoScriptError) for answer in answers):
                await self._load(again=True)
                answers = await self._send(commands)
            for answer in answers:
                if isinstance(answer, RedisError):
                    raise answer
            return answers

    async def run_one(self, *command: Any) -> Any:
        """Send one plain command."""
        return (await self.run(command))[0]

    def listener(self) -> Redis:
        """A client of its own for pub/sub, which waits for ever, so without a read timeout; the caller closes it."""
        return Redis.from_url(self._url, socket_connect_timeout=COMMAND_TIMEOUT_S, health_check_interval=10)

    async def make_group(self, stream: str, group: str) -> None:
        """Create a consumer group, and its stream, unless they exist."""
        with typed_errors():
            try:
                await self.redis.xgroup_create(stream, group, id="0", mkstream=True)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    async def read_group(self, reader: str, wait_s: float, *command: Any) -> Any:
        """A raw read of a consumer group; `[]` when nothing came, `None` when the group does not exist.

        `reader` names who reads: he has a connection of his own, which such a read may block for `wait_s`.
        """
        with typed_errors():
            link = self._readers.get(reader) or self._readers.setdefault(reader, Link(self._pool))
            (answer,) = await link.send([command], wait_s + COMMAND_TIMEOUT_S)
            if isinstance(answer, ResponseError) and str(answer).startswith("NOGROUP"):
                return None
            if isinstance(answer, RedisError):
                raise answer
            return answer or []

    async def info(self, section: str) -> dict[str, str]:
        """One section of Redis' INFO."""
        text = bytes(await self.run_one("INFO", section)).decode()
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        plain = [("EVALSHA", first.sha, *rest) if isinstance(first, Script) else (first, *rest) for first, *rest in commands]
        return await self._lanes.send(plain, COMMAND_TIMEOUT_S)

    async def _load(self, *, again: bool = False) -> None:
        if self._is_loaded and not again:
            return
        scripts = self._scripts.values()
        async with self._loading:
            pipeline = self.redis.pipeline(transaction=False)
            for script in scripts:
                pipeline.execute_command("SCRIPT", "LOAD", script.text)
            for script, sha in zip(scripts, await pipeline.execute(), strict=True):
                script.sha = sha.decode() if isinstance(sha, bytes) else str(sha)
            self._is_loaded = True

    async def close(self) -> None:
        """Close all connections."""
        for link in (self._lanes, *self._readers.values()):
            link.close()
        await self.redis.aclose()
        await self._pool.disconnect()

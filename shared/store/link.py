"""A connection to Redis that all callers of a process share at once.

    send ──▶ packed behind what others sent ──▶ Redis ──▶ answers, in order ──▶ whoever waits first

Nobody checks a connection out and waits for his own answer before the next may ask: what is asked in one turn of the loop
goes out together, which costs a tenth of redis-py's pipelines (docs/performance.md). redis-py still reads the URL and makes
the TLS context, and hiredis packs and parses. A link that is cut fails all who wait, and connects anew for whoever comes next.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import hiredis
from redis.asyncio.connection import ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import BusyLoadingError, NoScriptError, OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.store.packing import Buffer, pack

CONNECT_S = 5.0
HIGH_WATER_BYTES = 4 << 20
"""What may wait to be sent before senders do."""

_ERRORS = {
    "NOSCRIPT": NoScriptError,
    "OOM": OutOfMemoryError,
    "LOADING": BusyLoadingError,
    "READONLY": ReadOnlyError,
}
"""First word of Redis' error -> redis-py's class."""

_NOTHING = object()


class _Asked:
    """Commands of one caller and the answers that have come."""

    __slots__ = ("answers", "count", "deadline_s", "future", "timeout_s")

    def __init__(self, future: asyncio.Future[list[Any]], count: int, timeout_s: float, deadline_s: float) -> None:
        self.future = future
        self.count = count
        self.timeout_s = timeout_s
        self.deadline_s = deadline_s
        self.answers: list[Any] = []


class Link(asyncio.Protocol):
    """One shared connection, made when it is first needed. `pool` tells where to, and is not used otherwise."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._reader = self._new_reader()
        self._asked: deque[_Asked] = deque()
        self.waiting = 0
        """How many callers wait: for the connection, or for an answer."""
        self._watch: asyncio.TimerHandle | None = None
        self._watch_s = 0.0
        self._connecting = asyncio.Lock()
        self._writable = asyncio.Event()
        self._writable.set()

    async def send(self, commands: Sequence[Sequence[Any]], timeout_s: float) -> list[Any]:
        """Send commands and return their answers in order; Redis' errors are among them, not raised.

        Raises:
            redis.exceptions.ConnectionError, redis.exceptions.TimeoutError: there is no answer.
        """
        buffers, _ = pack(commands)
        return await self.send_packed(buffers, len(commands), timeout_s)

    async def send_packed(self, buffers: Sequence[Buffer], count: int, timeout_s: float) -> list[Any]:
        """Send so many commands that are packed already; see `send`."""
        self.waiting += 1
        try:
            if self._transport is None or not self._writable.is_set():
                async with asyncio.timeout(timeout_s):
                    if self._transport is None:
                        await self._connect()
                    if not self._writable.is_set():
                        await self._writable.wait()
            return await self._write(buffers, count, timeout_s)
        except TimeoutError:
            self.close()
            raise _no_answer(timeout_s) from None
        except OSError as error:
            raise RedisConnectionError(str(error)) from None
        finally:
            self.waiting -= 1

    def close(self) -> None:
        """Cut it; it may be used again."""
        if self._transport is not None:
            self._transport.abort()
            self._lost("the connection was closed")

    async def _connect(self) -> None:
        async with self._connecting:
            if self._transport is not None:
                return
            where = cast("Any", self._pool.make_connection())
            loop = asyncio.get_running_loop()
            if isinstance(where, UnixDomainSocketConnection):
                transport, _ = await loop.create_unix_connection(lambda: self, where.path)
            else:
                tls = where.ssl_context.get() if isinstance(where, SSLConnection) else None
                transport, _ = await loop.create_connection(lambda: self, where.host, where.port, ssl=tls)
            transport.set_write_buffer_limits(HIGH_WATER_BYTES)
            self._reader = self._new_reader()
            self._writable.set()
            self._transport = transport
            greeting: list[Sequence[Any]] = []
            if where.password:
                greeting.append(("AUTH", *([where.username] if where.username else []), where.password))
            if where.db:
                greeting.append(("SELECT", where.db))
            for answer in await self._write(pack(greeting)[0], len(greeting), CONNECT_S) if greeting else []:
                if isinstance(answer, Exception):
                    self.close()
                    raise RedisConnectionError(f"refused: {answer}")

    def _write(self, buffers: Sequence[Buffer], count: int, timeout_s: float) -> asyncio.Future[list[Any]]:
        if self._transport is None:
            raise RedisConnectionError("the connection was cut")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        deadline_s = loop.time() + timeout_s
        self._asked.append(_Asked(future, count, timeout_s, deadline_s))
        # One timer for all who wait: one for each costs more than to pack what he sends.
        if self._watch is None or deadline_s < self._watch_s:
            self._watch_until(loop, deadline_s)
        self._transport.writelines(buffers)
        return future

    def _watch_until(self, loop: asyncio.AbstractEventLoop, deadline_s: float) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._watch, self._watch_s = loop.call_at(deadline_s, self._check, loop), deadline_s

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        """See whether somebody has waited for too long. Who was canceled meanwhile takes no notice."""
        self._watch = None
        waiting = [each for each in self._asked if not each.future.done()]
        late = [each for each in waiting if each.deadline_s <= loop.time()]
        for each in late:
            each.future.set_exception(_no_answer(each.timeout_s))
        if late:
            # A Redis that hangs answers nobody on this connection; the next who asks tries a new one.
            self.close()
        elif waiting:
            self._watch_until(loop, min(each.deadline_s for each in waiting))

    @staticmethod
    def _new_reader() -> Any:
        return hiredis.Reader(replyError=_error, notEnoughData=_NOTHING)

    def _lost(self, why: str) -> None:
        self._transport = None
        self._writable.set()
        asked, self._asked = self._asked, deque()
        for each in asked:
            if not each.future.done():
                each.future.set_exception(RedisConnectionError(why))
                # Who was canceled meanwhile takes no notice.
                each.future.exception()

    # --- called by the event loop -----------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """A piece of the answers."""
        reader = self._reader
        reader.feed(data)
        while (answer := reader.gets()) is not _NOTHING:
            first = self._asked[0]
            first.answers.append(answer)
            if len(first.answers) == first.count:
                self._asked.popleft()
                if not first.future.done():
                    first.future.set_result(first.answers)

    def connection_lost(self, exc: Exception | None) -> None:
        """Redis is gone, or we closed. One that was closed and replaced meanwhile says nothing of its successor."""
        if self._transport is None or self._transport.is_closing():
            self._lost(str(exc or "Redis closed the connection"))

    def pause_writing(self) -> None:
        """Too much waits to be sent."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It was sent."""
        self._writable.set()


def _no_answer(timeout_s: float) -> RedisTimeoutError:
    return RedisTimeoutError(f"no answer within {timeout_s:g} s")


def _error(text: str) -> Exception:
    return _ERRORS.get(text.partition(" ")[0], ResponseError)(text)

"""Waiting for jobs: one pub/sub connection per process wakes all its waiters.

Two ways in. A job accepted with `reply_to=events.channel` wakes this process on its own channel with the finished job as
payload, so a request that waits costs no subscription. A job accepted elsewhere is watched on its own channel,
`mesh:jobs:ID`. Pub/sub is at most once: whoever waits registers first and reads the job then, and all waiters read their
job again whenever the connection was lost.
"""

import asyncio
import contextlib
import random
import secrets
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import cast

import structlog
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from shared.errors import StoreUnavailable
from shared.messages import TERMINAL, Job, job_from_json, job_from_msgpack
from shared.store import keys
from shared.store.connection import Connection

RECONNECT_S = 0.5
CONFIRM_S = 1.0
REREAD_S = 5.0
"""A waiter reads its job this often even if nothing came: a message lost between two healthy ends is not noticed else."""

log = structlog.get_logger()


class Waiter:
    """The events of one job, as they come to this process."""

    def __init__(self, read: Callable[[], Awaitable[Job]]) -> None:
        self._read = read
        self._events: asyncio.Queue[Job | None] = asyncio.Queue()

    def put(self, job: Job | None) -> None:
        """An event came; `None` says that one may have been missed."""
        self._events.put_nowait(job)

    async def wait(self, timeout_s: float) -> Job | None:
        """The job once it has ended, or `None` if it does not within `timeout_s`.

        Raises:
            UnknownJob, ExpiredJob: there is no such job (any more).
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                async for job in self:
                    if job.status in TERMINAL:
                        return job
        return None

    async def next(self, reread_s: float = REREAD_S) -> Job | None:
        """The next event, or the job as it is after `reread_s` without one; `None` if the store does not answer then.

        Raises:
            UnknownJob, ExpiredJob: there is no such job (any more).
        """
        try:
            async with asyncio.timeout(reread_s):
                job = await self._events.get()
        except TimeoutError:
            job = None
        if job is None:
            with contextlib.suppress(StoreUnavailable):
                return await self._read()
        return job

    async def __aiter__(self) -> AsyncIterator[Job]:
        """Every event until the job has ended."""
        while True:
            job = await self.next()
            if job is None:
                continue
            yield job
            if job.status in TERMINAL:
                return


class Events:
    """The process' ear. Use as an async context manager."""

    def __init__(self, connection: Connection, read_job: Callable[[str], Awaitable[Job]]) -> None:
        self.channel = keys.wake(secrets.token_hex(8))
        self._connection = connection
        self._read_job = read_job
        self._waiters: defaultdict[str, list[Waiter]] = defaultdict(list)
        self._watched: defaultdict[str, int] = defaultdict(int)
        self._bells: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._confirmations: dict[str, asyncio.Event] = {}
        self._pubsub: PubSub | None = None
        self._listener: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Events":
        self._listener = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._listener:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)

    @contextmanager
    def expect(self, job_id: str) -> Generator[Waiter]:
        """Wait for a job that is accepted with `reply_to=self.channel`. Register before accepting it."""
        waiter = Waiter(lambda: self._read_job(job_id))
        self._waiters[job_id].append(waiter)
        try:
            yield waiter
        finally:
            self._waiters[job_id].remove(waiter)
            if not self._waiters[job_id]:
                del self._waiters[job_id]

    @asynccontextmanager
    async def watch(self, job_id: str) -> AsyncGenerator[Waiter]:
        """Follow a job accepted anywhere; its present state is the first event.

        Raises:
            StoreUnavailable, UnknownJob, ExpiredJob: see `Jobs.read`.
        """
        channel = keys.events_of(job_id)
        with self.expect(job_id) as waiter:
            await self._subscribe(channel)
            try:
                waiter.put(await self._read_job(job_id))
                yield waiter
            finally:
                await self._unsubscribe(channel)

    def bell_of_batch(self, batch_id: str) -> AbstractAsyncContextManager[asyncio.Event]:
        """An event that is set whenever a member of the batch ends, or may have: read the batch then."""
        return self._bell(keys.events_of_batch(batch_id))

    def bell_of_render(self, job_id: str) -> AbstractAsyncContextManager[asyncio.Event]:
        """An event that is set whenever a picture of the job has been drawn, or may have: ask for it again then."""
        return self._bell(keys.events_of_render(job_id))

    @asynccontextmanager
    async def _bell(self, channel: str) -> AsyncGenerator[asyncio.Event]:
        bell = asyncio.Event()
        self._bells[channel].add(bell)
        await self._subscribe(channel)
        try:
            yield bell
        finally:
            self._bells[channel].discard(bell)
            if not self._bells[channel]:
                del self._bells[channel]
            await self._unsubscribe(channel)

    async def _subscribe(self, channel: str) -> None:
        self._watched[channel] += 1
        if self._watched[channel] > 1:
            return
        confirmed = self._confirmations[channel] = asyncio.Event()
        with contextlib.suppress(RedisError, OSError, TimeoutError, RuntimeError):
            if self._pubsub is not None:  # else `_listen` subscribes as soon as it is connected
                await self._pubsub.subscribe(channel)
            async with asyncio.timeout(CONFIRM_S):
                await confirmed.wait()
        confirmed.set()  # a confirmation from now on makes the waiters read again

    async def _unsubscribe(self, channel: str) -> None:
        self._watched[channel] -= 1
        if self._watched[channel]:
            return
        del self._watched[channel]
        self._confirmations.pop(channel, None)
        if self._pubsub is not None:
            with contextlib.suppress(RedisError, OSError, RuntimeError):
                await self._pubsub.unsubscribe(channel)

    async def _listen(self) -> None:
        while True:
            client = self._connection.listener()
            pubsub = client.pubsub()
            try:
                await pubsub.subscribe(self.channel)
                self._pubsub = pubsub
                if self._watched:
                    await pubsub.subscribe(*self._watched)
                while True:
                    message = await pubsub.get_message(timeout=None)  # type: ignore[arg-type] # None blocks; the stub says float
                    if message is not None:
                        self._hear(str(message["type"]), cast("bytes", message["channel"]).decode(), message["data"])
            except (RedisError, OSError, TimeoutError, RuntimeError) as error:  # RuntimeError: uvloop, of a cut connection
                log.warning("events.disconnected", error=str(error))
                await asyncio.sleep(random.uniform(0, RECONNECT_S))  # noqa: S311 - jitter needs no secrecy
            finally:
                self._pubsub = None
                with contextlib.suppress(RedisError, OSError, RuntimeError):
                    await pubsub.aclose()
                    await client.aclose()

    def _hear(self, kind: str, channel: str, data: object) -> None:
        if kind == "subscribe":
            self._confirm(channel)
        if kind == "message" and channel in self._bells:
            self._ring(channel)
            return
        if kind != "message" or not isinstance(data, bytes):
            return
        try:
            job = job_from_json(data) if data.startswith(b"{") else job_from_msgpack(data)
        except ValueError as error:
            log.warning("events.unreadable", channel=channel, error=str(error))
            return
        for waiter in self._waiters.get(job.id, ()):
            waiter.put(job)

    def _ring(self, channel: str) -> None:
        for bell in self._bells.get(channel, ()):
            bell.set()

    def _confirm(self, channel: str) -> None:
        """We hear this channel from now on. Whoever waited while we were deaf may have missed the one message."""
        confirmed = self._confirmations.get(channel)
        self._ring(channel)
        if channel == self.channel:
            deaf = [waiter for waiters in self._waiters.values() for waiter in waiters]
        elif confirmed is not None and confirmed.is_set():
            deaf = self._waiters.get(channel.removeprefix(keys.events_of("")), [])
        else:
            deaf = []
        for waiter in deaf:
            waiter.put(None)
        if confirmed is not None:
            confirmed.set()

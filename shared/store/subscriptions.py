"""Results for those outside the mesh: live from the channels, or durably from the stream of results.

Live is at most once: what is published while a subscriber is away is gone. Durable is at least once: a consumer group
remembers what it was given until it comes back for more, and a single reader knows the ID of the last entry it saw.
Both outlive a Redis that is away for a while; they give up when it stays away.
"""

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, cast

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from shared.errors import InvalidParameter, StoreUnavailable
from shared.messages import Job, job_from_json, job_from_msgpack
from shared.settings import Settings
from shared.store import keys, result_streams
from shared.store.connection import Connection, UnknownGroup, typed_errors
from shared.store.result_streams import ResultStream
from shared.store.server import COMMAND_TIMEOUT_S

IDLE_S = 10.0
"""A connection that has been quiet this long is asked whether it is still there."""

BLOCK_S = 2.0
"""How long one read of the stream waits; shorter than the timeout of a command."""

AT_ONCE = 100
AT_ONCE_SHARED = 10
"""Few, for what one consumer of a group has taken and not yet come to, no other gets."""

CLAIM_AFTER_S = 60.0
"""What another consumer of the group has held this long without coming back is taken over."""

GROWTH_S = 5.0
"""How often a subscriber of a cluster looks whether partitions were added."""

_NO_POSITION = "{!r} is no entry of the stream; take its ID, `0` or `$`"

PATIENCE_S = 30.0
RETRY_MOST_S = 2.0

log = structlog.get_logger()


class Delivery(NamedTuple):
    """A finished job; `entry_id` is where it stands in the stream, empty for one heard live."""

    job: Job
    entry_id: str = ""


@asynccontextmanager
async def live(redis_url: str, model: str = "") -> AsyncGenerator[AsyncIterator[Delivery]]:
    """Every job that finishes from now on, of one model or of all. The subscription stands when the block begins.

    Raises:
        StoreUnavailable: Redis does not answer, or is away for longer than `PATIENCE_S`.
        InvalidParameter: the URL is none of Redis.
    """
    connection = _connection(redis_url)
    channel = keys.results_of(model) if model else keys.RESULTS_CHANNEL
    ear = _Ear(connection, channel)
    try:
        await connection.find_out()
        with typed_errors():
            await ear.subscribe()
        heard = _heard(ear)
        async with contextlib.aclosing(heard):
            yield heard
    finally:
        await ear.close()
        await connection.close()


@asynccontextmanager
async def durable(
    redis_url: str, *, group: str = "", consumer: str = "", after: str = "$"
) -> AsyncGenerator[AsyncIterator[Delivery]]:
    """Every finished job of the stream behind the entry `after` (`0`: from its beginning, `$`: from now on).

    With a `group`, each job goes to one of its consumers, and `after` counts only when the group is made. A job is
    acknowledged when its consumer asks for the next one; until then it would be given again, to the consumer of the same
    name or, after `CLAIM_AFTER_S`, to any other.

    In a cluster each partition has a stream of its own: all are read, their jobs in no order between partitions, and without
    a group an `entry_id` is the last entries of all streams, joined by commas; so is `after`. Partitions that are added
    meanwhile are read from their beginning.

    Raises:
        StoreUnavailable: Redis does not answer, or is away for longer than `PATIENCE_S`.
        InvalidParameter: the URL is none of Redis, or `after` is no entry's ID.
    """
    connection = _connection(redis_url)
    together = _Group(group, consumer or f"consumer-{secrets.token_hex(4)}") if group else None
    try:
        names = await result_streams.names(connection)
        places = after.split(",")
        if len(places) > len(names):
            raise InvalidParameter(_NO_POSITION.format(after))
        # Partitions that are new since have nothing yet that was seen; but `0` and `$` are said of all.
        places += [after if after in ("0", "$") else "0"] * (len(names) - len(places))
        sources = [await _open(connection, name, together, place) for name, place in zip(names, places, strict=True)]
        found = _of_all(connection, sources, together) if connection.is_cluster else sources[0].deliveries
        async with contextlib.aclosing(found):
            yield found
    finally:
        await connection.close()


class _Patience:
    """Waits longer after every failure in a row, and raises the failure when it lasts too long."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._bound_s = 0.1

    def over(self) -> None:
        """All is well again."""
        self._since_s, self._bound_s = None, 0.1

    async def bear(self, error: StoreUnavailable) -> None:
        """Wait, unless it has been too long."""
        now_s = time.monotonic()
        self._since_s = self._since_s or now_s
        if now_s - self._since_s > PATIENCE_S:
            raise error
        log.debug("subscription.interrupted", error=error.detail)
        await asyncio.sleep(random.uniform(0, self._bound_s))  # noqa: S311 - jitter needs no secrecy
        self._bound_s = min(self._bound_s * 2, RETRY_MOST_S)


def _connection(redis_url: str) -> Connection:
    try:
        return Connection(Settings(redis_url=redis_url))
    except ValueError as error:
        raise InvalidParameter(f"{redis_url!r} is not the URL of a Redis: {error}") from None


# --- live -----------------------------------------------------------------------------------------------------------


class _Ear:
    """A subscription to one channel, at whichever server of the mesh answers."""

    def __init__(self, connection: Connection, channel: str) -> None:
        self._connection = connection
        self._channel = channel
        self._client: Redis | None = None
        self.pubsub: PubSub | None = None

    async def subscribe(self) -> None:
        """Subscribe, anew if it was before, and wait for the confirmation.

        Raises:
            redis.exceptions.RedisError: there is none.
        """
        await self.close()
        self._client = self._connection.listener(check_s=0)
        self.pubsub = self._client.pubsub()
        await self.pubsub.subscribe(self._channel)
        if await self.pubsub.get_message(timeout=COMMAND_TIMEOUT_S) is None:
            raise RedisConnectionError("the subscription was not confirmed")

    async def close(self) -> None:
        """Close the connection, if there is one."""
        with contextlib.suppress(RedisError, OSError, RuntimeError):
            if self.pubsub:
                await self.pubsub.aclose()
            if self._client:
                await self._client.aclose()
        self.pubsub = self._client = None


async def _heard(ear: _Ear) -> AsyncGenerator[Delivery]:
    patience = _Patience()
    while True:
        try:
            with typed_errors():
                if ear.pubsub is None:
                    await ear.subscribe()
                async for payload in _payloads(cast("PubSub", ear.pubsub)):
                    patience.over()
                    if job := _decode(payload):
                        yield Delivery(job)
        except StoreUnavailable as error:
            await ear.close()
            await patience.bear(error)


async def _payloads(pubsub: PubSub) -> AsyncGenerator[bytes]:
    asked = False
    while True:
        message = await pubsub.get_message(timeout=IDLE_S)
        if message is None:
            if asked:
                raise RedisConnectionError("no answer to a ping")
            asked = True
            await pubsub.ping()
            continue
        asked = False
        if message["type"] == "message":
            yield cast("bytes", message["data"])


# --- durable --------------------------------------------------------------------------------------------------------


class _Group(NamedTuple):
    """Who shares the stream with others."""

    name: str
    consumer: str


class _Source:
    """What one stream gives, and the last entry that it gave or was to begin behind."""

    def __init__(self, deliveries: AsyncGenerator[Delivery], position: str) -> None:
        self.deliveries = deliveries
        self.position = position

    async def next(self) -> Delivery:
        """The next one; the stream never ends."""
        return await anext(self.deliveries)


async def _open(connection: Connection, name: str, group: _Group | None, after: str) -> _Source:
    """Begin with one stream behind an entry."""
    with _readable_position(after):
        if group:
            stream = ResultStream(connection, name, *group)
            await stream.make_group(after)
            return _Source(_shared(stream, after), after)
        stream = ResultStream(connection, name)
        position = await stream.last_id() if after == "$" else after
        return _Source(_alone(stream, position), position)


async def _of_all(connection: Connection, sources: list[_Source], group: _Group | None) -> AsyncGenerator[Delivery]:
    """What all streams of a cluster give, as it comes. A stream is asked for more when its last one was dealt with."""
    waiting = {asyncio.create_task(source.next()): source for source in sources}
    growth = asyncio.create_task(_more_than(connection, len(sources)))
    try:
        while True:
            await asyncio.wait({*waiting, growth}, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in waiting if task.done()]:
                source = waiting.pop(task)
                delivery = task.result()
                source.position = delivery.entry_id
                yield Delivery(delivery.job, source.position if group else ",".join(each.position for each in sources))
                waiting[asyncio.create_task(source.next())] = source
            if growth.done():
                for name in growth.result():
                    sources.append(await _open(connection, name, group, "0"))
                    waiting[asyncio.create_task(sources[-1].next())] = sources[-1]
                growth = asyncio.create_task(_more_than(connection, len(sources)))
    finally:
        tasks: list[asyncio.Task[Any]] = [*waiting, growth]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for source in sources:
            await source.deliveries.aclose()


async def _more_than(connection: Connection, count: int) -> list[str]:
    """The streams of partitions that were added, once there are any."""
    while True:
        await asyncio.sleep(GROWTH_S)
        with contextlib.suppress(StoreUnavailable):
            if more := (await result_streams.names(connection))[count:]:
                return more


async def _shared(stream: ResultStream, after: str) -> AsyncGenerator[Delivery]:
    async for entry_id, payload in _given(stream, after):
        if payload and (job := _decode(payload)):
            yield Delivery(job, entry_id)
        # Only now: a consumer that does not come back for more has perhaps not dealt with this one.
        with contextlib.suppress(StoreUnavailable):
            await stream.acknowledge(entry_id)


async def _given(stream: ResultStream, after: str) -> AsyncGenerator[tuple[str, bytes]]:
    """What is this consumer's from before, then by turns what others left lying and what is new."""
    patience = _Patience()
    position, claim_at_s, group_is_gone = "0", 0.0, False
    while True:
        try:
            if group_is_gone:  # Redis was emptied, so whatever is there by now is new
                await stream.make_group("0" if after == "$" else after)
                group_is_gone = False
            if position == ">" and time.monotonic() >= claim_at_s:
                entries = await stream.claim(CLAIM_AFTER_S, AT_ONCE_SHARED)
                claim_at_s = 0.0 if entries else time.monotonic() + CLAIM_AFTER_S / 4
                for entry in entries:
                    yield entry
            entries = await stream.read(position, AT_ONCE_SHARED, BLOCK_S)
        except StoreUnavailable as error:
            await patience.bear(error)
            position = "0"
            continue
        except UnknownGroup:
            group_is_gone = True
            continue
        patience.over()
        for entry in entries:
            yield entry
        if position != ">":
            position = entries[-1][0] if entries else ">"


async def _alone(stream: ResultStream, after: str) -> AsyncGenerator[Delivery]:
    patience = _Patience()
    while True:
        try:
            with _readable_position(after):
                entries = await stream.read(after, AT_ONCE, BLOCK_S)
        except StoreUnavailable as error:
            await patience.bear(error)
            continue
        patience.over()
        for entry_id, payload in entries:
            after = entry_id
            if payload and (job := _decode(payload)):
                yield Delivery(job, entry_id)


@contextlib.contextmanager
def _readable_position(after: str) -> Generator[None]:
    try:
        yield
    except ResponseError as error:
        if result_streams.is_no_position(error):
            raise InvalidParameter(_NO_POSITION.format(after)) from None
        raise


def _decode(payload: bytes) -> Job | None:
    try:
        return job_from_json(payload) if payload.startswith(b"{") else job_from_msgpack(payload)
    except ValueError as error:
        log.warning("subscription.unreadable", error=str(error))
        return None

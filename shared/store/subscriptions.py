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
from shared.store import keys
from shared.store.connection import COMMAND_TIMEOUT_S, typed_errors

IDLE_S = 10.0
"""A connection that has been quiet this long is asked whether it is still there."""

BLOCK_S = 2.0
"""How long one read of the stream waits; shorter than the timeout of a command."""

AT_ONCE = 100
AT_ONCE_SHARED = 10
"""Few, for what one consumer of a group has taken and not yet come to, no other gets."""

CLAIM_AFTER_S = 60.0
"""What another consumer of the group has held this long without coming back is taken over."""

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
    redis = _client(redis_url)
    channel = keys.results_of(model) if model else keys.RESULTS_CHANNEL
    pubsub = redis.pubsub()
    try:
        with typed_errors():
            await _subscribe(pubsub, channel)
        heard = _heard(redis, pubsub, channel)
        async with contextlib.aclosing(heard):
            yield heard
    finally:
        with contextlib.suppress(RedisError, OSError):
            await redis.aclose()


@asynccontextmanager
async def durable(
    redis_url: str, *, group: str = "", consumer: str = "", after: str = "$"
) -> AsyncGenerator[AsyncIterator[Delivery]]:
    """Every finished job of the stream behind the entry `after` (`0`: from its beginning, `$`: from now on).

    With a `group`, each job goes to one of its consumers, and `after` counts only when the group is made. A job is
    acknowledged when its consumer asks for the next one; until then it would be given again, to the consumer of the same
    name or, after `CLAIM_AFTER_S`, to any other.

    Raises:
        StoreUnavailable: Redis does not answer, or is away for longer than `PATIENCE_S`.
        InvalidParameter: the URL is none of Redis, or `after` is no entry's ID.
    """
    redis = _client(redis_url)
    try:
        with typed_errors(), _readable_position(after):
            if group:
                await _make_group(redis, group, after)
                entries = _shared(redis, group, consumer or f"consumer-{secrets.token_hex(4)}", after)
            else:
                entries = _alone(redis, await _last_id(redis) if after == "$" else after)
        async with contextlib.aclosing(entries):
            yield entries
    finally:
        with contextlib.suppress(RedisError, OSError):
            await redis.aclose()


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


def _client(redis_url: str) -> Redis:
    try:
        redis = Redis.from_url(redis_url, socket_timeout=COMMAND_TIMEOUT_S, socket_connect_timeout=COMMAND_TIMEOUT_S)
    except ValueError as error:
        raise InvalidParameter(f"{redis_url!r} is not the URL of a Redis: {error}") from None
    redis.response_callbacks.clear()  # answers are read as Redis sends them
    return redis


# --- live -----------------------------------------------------------------------------------------------------------


async def _subscribe(pubsub: PubSub, channel: str) -> None:
    await pubsub.subscribe(channel)
    if await pubsub.get_message(timeout=COMMAND_TIMEOUT_S) is None:
        raise RedisConnectionError("the subscription was not confirmed")


async def _heard(redis: Redis, pubsub: PubSub, channel: str) -> AsyncGenerator[Delivery]:
    patience = _Patience()
    try:
        while True:
            try:
                with typed_errors():
                    async for payload in _payloads(pubsub):
                        patience.over()
                        if job := _decode(payload):
                            yield Delivery(job)
            except StoreUnavailable as error:
                await patience.bear(error)
                with contextlib.suppress(StoreUnavailable), typed_errors():
                    await pubsub.aclose()
                    pubsub = redis.pubsub()
                    await _subscribe(pubsub, channel)
    finally:
        with contextlib.suppress(RedisError, OSError):
            await pubsub.aclose()


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


async def _shared(redis: Redis, group: str, consumer: str, after: str) -> AsyncGenerator[Delivery]:
    async for entry_id, payload in _given(redis, group, consumer, after):
        if payload and (job := _decode(payload)):
            yield Delivery(job, entry_id)
        # Only now: a consumer that does not come back for more has perhaps not dealt with this one.
        with contextlib.suppress(StoreUnavailable), typed_errors():
            await redis.execute_command("XACK", keys.RESULTS_STREAM, group, entry_id)


async def _given(redis: Redis, group: str, consumer: str, after: str) -> AsyncGenerator[tuple[str, bytes]]:
    """What is this consumer's from before, then by turns what others left lying and what is new."""
    patience = _Patience()
    position, claim_at_s, group_is_gone = "0", 0.0, False
    while True:
        try:
            with typed_errors():
                if group_is_gone:  # Redis was emptied, so whatever is there by now is new
                    await _make_group(redis, group, "0" if after == "$" else after)
                    group_is_gone = False
                if position == ">" and time.monotonic() >= claim_at_s:
                    entries = await _claim(redis, group, consumer)
                    claim_at_s = 0.0 if entries else time.monotonic() + CLAIM_AFTER_S / 4
                    for entry in entries:
                        yield entry
                entries = await _read(redis, ["XREADGROUP", "GROUP", group, consumer], position, AT_ONCE_SHARED)
        except StoreUnavailable as error:
            await patience.bear(error)
            position = "0"
            continue
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            group_is_gone = True
            continue
        patience.over()
        for entry in entries:
            yield entry
        if position != ">":
            position = entries[-1][0] if entries else ">"


async def _claim(redis: Redis, group: str, consumer: str) -> list[tuple[str, bytes]]:
    idle_ms = int(CLAIM_AFTER_S * 1000)
    answer: Any = await redis.execute_command(
        "XAUTOCLAIM", keys.RESULTS_STREAM, group, consumer, idle_ms, "0-0", "COUNT", AT_ONCE_SHARED
    )
    return _entries(answer[1])


async def _alone(redis: Redis, after: str) -> AsyncGenerator[Delivery]:
    patience = _Patience()
    while True:
        try:
            with typed_errors(), _readable_position(after):
                entries = await _read(redis, ["XREAD"], after, AT_ONCE)
        except StoreUnavailable as error:
            await patience.bear(error)
            continue
        patience.over()
        for entry_id, payload in entries:
            after = entry_id
            if payload and (job := _decode(payload)):
                yield Delivery(job, entry_id)


async def _read(redis: Redis, command: list[str], position: str, at_once: int) -> list[tuple[str, bytes]]:
    block_ms = int(BLOCK_S * 1000)
    answer: Any = await redis.execute_command(
        *command, "COUNT", at_once, "BLOCK", block_ms, "STREAMS", keys.RESULTS_STREAM, position
    )
    return _entries(answer[0][1]) if answer else []


def _entries(raw: list[Any]) -> list[tuple[str, bytes]]:
    """Entry IDs and payloads; empty for an entry that the stream's cap has dropped since it was given."""
    found: list[tuple[str, bytes]] = []
    for entry in raw:
        fields: list[Any] = entry[1] or []
        pairs = dict(zip(fields[::2], fields[1::2], strict=True))
        found.append((bytes(entry[0]).decode(), pairs.get(b"job", b"")))
    return found


async def _make_group(redis: Redis, group: str, after: str) -> None:
    try:
        await redis.execute_command("XGROUP", "CREATE", keys.RESULTS_STREAM, group, after, "MKSTREAM")
    except ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise


async def _last_id(redis: Redis) -> str:
    newest: Any = await redis.execute_command("XREVRANGE", keys.RESULTS_STREAM, "+", "-", "COUNT", 1)
    return bytes(newest[0][0]).decode() if newest else "0"


@contextlib.contextmanager
def _readable_position(after: str) -> Generator[None]:
    try:
        yield
    except ResponseError as error:
        if "Invalid stream ID" in str(error):
            raise InvalidParameter(f"{after!r} is no entry of the stream; take its ID, `0` or `$`") from None
        raise


def _decode(payload: bytes) -> Job | None:
    try:
        return job_from_json(payload) if payload.startswith(b"{") else job_from_msgpack(payload)
    except ValueError as error:
        log.warning("subscription.unreadable", error=str(error))
        return None

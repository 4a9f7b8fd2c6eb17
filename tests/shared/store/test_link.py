"""The connection that all share: what it sends, by which of its links, and what a Redis that hangs does to those who wait."""

import asyncio
import time

import hiredis
import pytest
from redis.asyncio.connection import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.store.lanes import LARGE_BYTES, LARGE_LINKS, Lanes
from shared.store.link import Link
from shared.store.packing import Pieces, pack


def test_pieces_are_packed_as_one_value_without_a_copy() -> None:
    pieces = [b"ab", memoryview(b"xcdx")[1:3], bytearray(b"")]
    buffers, count = pack([("SET", "key\u00e9", Pieces(*pieces), "PX", 1000), ("GET", b"key")])
    joined = b"".join(buffers)
    assert joined == hiredis.pack_command(("SET", "key\u00e9", b"abcd", "PX", 1000)) + hiredis.pack_command(("GET", b"key"))
    assert count == len(joined)
    assert all(any(piece is buffer for buffer in buffers) for piece in pieces)


def test_large_values_go_by_several_links_and_come_back_whole(redis_url: str) -> None:
    async def work() -> None:
        lanes = Lanes(ConnectionPool.from_url(redis_url))
        values = [bytes([number]) * (LARGE_BYTES + number) for number in range(LARGE_LINKS + 2)]
        await asyncio.gather(
            *(
                lanes.send([("SET", f"k{number}", Pieces(value[:9], value[9:]), "PX", 60_000)], 5.0)
                for number, value in enumerate(values)
            )
        )
        assert await lanes.send([("GET", f"k{number}") for number in range(len(values))], 5.0) == values
        (clients,) = await lanes.send([("INFO", "clients")], 5.0)
        connected = next(line for line in clients.decode().splitlines() if line.startswith("connected_clients:"))
        assert int(connected.partition(":")[2]) >= 1 + LARGE_LINKS
        lanes.close()
        await asyncio.sleep(0)

    asyncio.run(work())


def test_a_redis_that_hangs_fails_all_who_wait_and_the_next_connects_anew(redis_url: str) -> None:
    async def work() -> None:
        pool = ConnectionPool.from_url(redis_url)
        link, other = Link(pool), Link(pool)
        assert await link.send([("PING",)], 5.0) == [b"PONG"]
        # Waits for an entry that never comes, and whatever was sent behind it waits as well.
        hanging = ("BLPOP", "nothing", 30)
        patient = asyncio.create_task(link.send([hanging], 20.0))
        await asyncio.sleep(0)
        canceled = asyncio.create_task(link.send([("PING",)], 0.05))
        await asyncio.sleep(0)
        canceled.cancel()
        began_s = time.monotonic()
        with pytest.raises(RedisTimeoutError, match=r"within 0\.2 s"):
            await link.send([("PING",)], 0.2)
        assert time.monotonic() - began_s < 5
        with pytest.raises(RedisConnectionError):
            await patient
        assert await link.send([("PING",)], 5.0) == [b"PONG"]
        assert await other.send([("PING",)], 5.0) == [b"PONG"]
        link.close()
        other.close()
        await asyncio.sleep(0)  # a loop that ends at once would leave the sockets open

    asyncio.run(work())

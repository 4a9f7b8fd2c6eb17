"""The load generator itself: what it counts as latency when a server is slow, and what it says of its own delays."""

import asyncio
from contextlib import asynccontextmanager

from visionmesh.bench import load
from visionmesh.bench.connection import Address
from visionmesh.bench.endpoints import ENDPOINTS, request
from visionmesh.bench.measured import Phase, Result

ENDPOINT = ENDPOINTS["submit"]


@asynccontextmanager
async def server(
    pause_s: float, *, stall_s: float = 0.0, answer: bytes = b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n"
):
    """Answers one request at a time after `pause_s`; the first one takes `stall_s` more."""
    one_at_a_time, first = asyncio.Lock(), [stall_s]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                async with one_at_a_time:
                    await asyncio.sleep(pause_s + first.pop() if first else pause_s)
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield Address(*listening.sockets[0].getsockname()[:2])
    finally:
        listening.close()


def measure(phase: Phase, pause_s: float, **options: object) -> Result:
    async def run() -> Result:
        async with server(pause_s, **options) as address:  # type: ignore[arg-type]
            return await load.run(address, ENDPOINT, [request(ENDPOINT, address, "small", b"picture")], phase)

    return load.on_fast_loop(run())


def test_a_stall_is_felt_by_all_who_were_due_in_it() -> None:
    """A closed loop of one would count one slow answer of forty; forty clients a second came, and half of them waited."""
    open_loop = measure(Phase(name="open", clients=64, rate=40, duration_s=1), 0.001, stall_s=0.5)
    assert open_loop.good == 40
    assert open_loop.latency_ms.p50 < open_loop.latency_ms.p90
    assert open_loop.latency_ms.p90 > 300
    assert open_loop.latency_ms.max > 450
    closed_loop = measure(Phase(name="closed", clients=1, requests=40), 0.001, stall_s=0.5)
    assert closed_loop.latency_ms.p90 < 100


def test_latency_counts_from_when_a_picture_was_due_also_without_a_free_connection() -> None:
    result = measure(Phase(name="open", clients=1, rate=50, duration_s=0.4), 0.05)
    assert result.good == 20
    assert result.latency_ms.max > 400, "the last was due after 0.4 s and came after 1 s"
    assert result.late_ms_p99 < 50, "the generator itself was never the one who was late"


def test_errors_are_counted_by_what_they_say() -> None:
    problem = b'HTTP/1.1 503 Service Unavailable\r\ncontent-length: 21\r\n\r\n{"code":"overloaded"}'
    result = measure(Phase(name="bad", clients=2, requests=6), 0.001, answer=problem)
    assert (result.good, result.bad, result.errors) == (0, 6, {"503 overloaded": 6})


def test_a_server_that_is_not_there_is_an_error_not_a_crash() -> None:
    async def run() -> Result:
        return await load.run(
            Address("127.0.0.1", 9), ENDPOINT, [b"GET / HTTP/1.1\r\n\r\n"], Phase(name="none", clients=1, requests=2)
        )

    assert load.on_fast_loop(run()).errors == {"connect": 2}

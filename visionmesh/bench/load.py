"""The load generator: clients over keep-alive connections, in a closed or an open loop.

In the open loop the n-th picture is due n / rate seconds after the start, and its latency counts from then, also when it had
to wait for a connection: a slow server cannot hide behind clients that wait for it (coordinated omission).
"""

import asyncio
import contextlib
import itertools
import resource
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from visionmesh.bench.connection import Address, Connection, ConnectionFailed
from visionmesh.bench.endpoints import Endpoint, Outcome
from visionmesh.bench.measured import Phase, Result, Tally

TIMEOUT_S = 60.0
GRACE_S = 2.0
"""How long after the end of an open loop its waiting arrivals may still be sent; those left then are `unsent`."""

Watch = Callable[[Phase, Tally, float], None]
"""Told the phase, its tally and the seconds since its start, a few times a second."""

WATCH_S = 0.25

T = TypeVar("T")


def on_fast_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run to its end, on uvloop where it is installed."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


async def run(
    address: Address, endpoint: Endpoint, requests: Sequence[bytes], phase: Phase, watch: Watch | None = None
) -> Result:
    """Send the requests, over and over in turn, at the phase's load."""
    generator = _Generator(address, endpoint, requests, phase)
    return await generator.run(watch)


class _Generator:
    """One run."""

    def __init__(self, address: Address, endpoint: Endpoint, requests: Sequence[bytes], phase: Phase) -> None:
        self._address = address
        self._endpoint = endpoint
        self._requests = requests
        self._phase = phase
        self._tally = Tally()
        self._sent_bytes = 0
        self._started_s = 0.0
        self._numbers = self._arrivals()

    async def run(self, watch: Watch | None) -> Result:
        started_at, cpu_s = datetime.now(UTC).isoformat(timespec="seconds"), _cpu_s()
        self._started_s = time.perf_counter()
        watching = asyncio.create_task(self._watch(watch)) if watch else None
        await asyncio.gather(*(self._client() for _ in range(self._phase.clients)))
        if watching:
            watching.cancel()
        wall_s = time.perf_counter() - self._started_s
        return self._tally.result(
            self._phase,
            started_at,
            wall_s,
            unsent=sum(1 for _ in self._numbers) if self._phase.rate else 0,
            sent_bytes=self._sent_bytes,
            client_cpu_s=_cpu_s() - cpu_s,
        )

    def _arrivals(self) -> Iterator[int]:
        phase = self._phase
        if phase.requests:
            return iter(range(phase.requests))
        return iter(range(max(int(phase.rate * phase.duration_s), 1))) if phase.rate else itertools.count()

    async def _client(self) -> None:
        connection = Connection(self._address)
        # Ends by the clock: of an open loop a little after its last arrival, of a closed one by its duration.
        rate, stop_s = self._phase.rate, self._phase.duration_s + (GRACE_S if self._phase.rate else 0.0)
        try:
            while not self._phase.duration_s or self._elapsed_s() < stop_s:
                number = next(self._numbers, None)
                if number is None:
                    return
                free_s = self._elapsed_s()
                due_s = number / rate if rate else free_s
                if due_s > free_s:
                    await asyncio.sleep(due_s - free_s)
                request = self._requests[number % len(self._requests)]
                late_ms = (self._elapsed_s() - max(due_s, free_s)) * 1000
                outcome = await self._send(connection, request)
                ended_s = self._elapsed_s()
                self._tally.add(ended_s, (ended_s - due_s) * 1000, late_ms, outcome)
        finally:
            connection.close()

    async def _send(self, connection: Connection, request: bytes) -> Outcome:
        self._sent_bytes += len(request)
        try:
            answer = await connection.exchange(request, TIMEOUT_S)
        except ConnectionFailed as error:
            return Outcome(error=str(error))
        return self._endpoint.read(answer)

    async def _watch(self, watch: Watch) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            watch(self._phase, self._tally, self._elapsed_s())

    def _elapsed_s(self) -> float:
        return time.perf_counter() - self._started_s


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime

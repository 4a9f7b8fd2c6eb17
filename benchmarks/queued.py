"""Queues of different depth, side by side: a mesh for each, filled once, that takes turns with the others.

A mesh whose turn it is not stands still (SIGSTOP): its queue must not run empty. In its turn its workers go on, and a feeder
sends a picture over HTTP for each that has ended, so that the depth stays. What is left at the end is dropped with the mesh.
"""

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import psutil
from redis.asyncio import Redis

from benchmarks import servers
from benchmarks.books import Books, Cost
from benchmarks.servers import BenchmarkError
from deploy.local.supervisor import LocalMesh
from shared import models, settings
from shared.messages import JobOptions
from shared.store import Store, connect, keys
from visionmesh.bench import pictures
from visionmesh.bench.connection import Connection, ConnectionFailed, address_of
from visionmesh.bench.endpoints import ENDPOINTS, request

DEPTHS = (10, 1_000, 100_000)
SIZE, QUALITY = (160, 120), 60
MODEL = "echo"
ENVIRON = {
    "MESH_BYTE_BUDGET": str(1 << 40), "MESH_JOB_DEADLINE_S": "36000", "MESH_MAX_QUEUE_S": "604800",
    "MESH_RESULTS_STREAM_LENGTH": "10000",
}  # fmt: skip
"""Nothing is refused and nothing expires while queues are deep."""

AT_ONCE = 512
"""Jobs that are accepted at once while a queue is filled."""

FEEDERS = 8
"""Connections of the feeder."""

LOOK_S = 0.005
WARM_UP_S = 3.0
RATE_PER_S = 1000.0
"""What is said to end in a second while a queue is filled; that a new process does not know would stop it at 512."""

FULL_SHARE, MOST_TAKEN = 0.9, 64
"""A queue has run empty if there is less than this share of its depth, beside what ends between two looks."""

TIMEOUT_S = 30.0

Say = Callable[[str], None]

_QUEUE = keys.queue(0, "preprocess")


class Backlog:
    """A mesh whose preprocess queue is kept `depth` jobs deep."""

    def __init__(self, mesh: LocalMesh, redis: Redis, triton_pid: int, depth: int) -> None:
        self.depth = depth
        self._mesh = mesh
        self._redis = redis
        self._books = Books(mesh, redis, triton_pid)
        self._body = pictures.generate(*SIZE, quality=QUALITY)[0]

    async def fill(self, say: Say) -> None:
        """Stop the workers and accept jobs until there are enough."""
        self._send(signal.SIGSTOP)
        async with _store(self._mesh) as (store, registry):
            model, left = registry.get(MODEL), self.depth
            store.admission.rate_per_s = RATE_PER_S
            while left > 0:
                number = min(AT_ONCE, left)
                await asyncio.gather(*(self._accept(store, model) for _ in range(number)))
                left -= number
                if (self.depth - left) % (AT_ONCE * 40) == 0:
                    say(f"{self.depth:,} queued: {self.depth - left:,} accepted")
        # A rewrite of the append-only file that filling has set off is not the slice's.
        while (await self._redis.info("persistence"))["aof_rewrite_in_progress"]:  # noqa: ASYNC110 - Redis tells nobody
            await asyncio.sleep(0.1)

    async def turn(self, seconds: float) -> Cost:
        """Let the workers work for so long, and count.

        Raises:
            BenchmarkError: the queue runs empty, or the mesh refuses.
        """
        feeding = asyncio.create_task(self._feed())
        self._send(signal.SIGCONT)
        try:
            await asyncio.wait([feeding], timeout=WARM_UP_S)
            await self._books.open()
            before, loop = await self._ended(), asyncio.get_running_loop()
            started_s = loop.time()
            await asyncio.wait([feeding], timeout=seconds)
            count, took_s = await self._ended() - before, loop.time() - started_s
            cost = await self._books.close(count, took_s, None)
            if feeding.done():
                feeding.result()
            if await self._redis.xlen(_QUEUE) < self.depth * FULL_SHARE - MOST_TAKEN:
                raise BenchmarkError(f"a queue of {self.depth:,} ran empty: the feeder is too slow")
            return cost
        finally:
            self._send(signal.SIGSTOP)
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)

    def go_on(self) -> None:
        """Let the workers go on, so that they can be told to end."""
        self._send(signal.SIGCONT)

    async def _accept(self, store: Store, model: models.Model) -> None:
        await store.jobs.accept(
            store.jobs.new_id(), model=model, options=JobOptions(), body=self._body, upload_bytes=len(self._body)
        )

    async def _feed(self) -> None:
        """Send as many pictures as have ended, for ever."""
        address, endpoint = address_of(self._mesh.url), ENDPOINTS["submit"]
        picture = request(endpoint, address, MODEL, self._body)
        connections = [Connection(address) for _ in range(FEEDERS)]
        try:
            while True:
                missing = self.depth - int(await self._redis.xlen(_QUEUE))
                self._books.own["xlen"] = self._books.own.get("xlen", 0) + 1
                shares = [missing // FEEDERS + (number < missing % FEEDERS) for number in range(FEEDERS)]

                async def send(connection: Connection, count: int) -> None:
                    for _ in range(count):
                        outcome = endpoint.read(await connection.exchange(picture, TIMEOUT_S))
                        if outcome.error.startswith("503"):  # a gateway that does not know yet how fast work ends
                            return
                        if outcome.error:
                            raise BenchmarkError(f"submitting is answered with {outcome.error}")

                await asyncio.gather(*(send(each, share) for each, share in zip(connections, shares, strict=True)))
                await asyncio.sleep(LOOK_S)
        except ConnectionFailed as error:
            raise BenchmarkError(f"submitting fails: {error}") from None
        finally:
            for connection in connections:
                connection.close()

    async def _ended(self) -> int:
        """How many jobs have ended since the stream of results was made."""
        self._books.own["xinfo|stream"] = self._books.own.get("xinfo|stream", 0) + 1
        with contextlib.suppress(Exception):  # none has ended yet
            return (await self._redis.xinfo_stream(keys.RESULTS_STREAM))["entries-added"]
        return 0

    def _send(self, what: signal.Signals) -> None:
        for name, process in self._mesh.processes.items():
            if name.startswith(("preprocess", "inference")) and process.pid:
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(process.pid).send_signal(what)


@asynccontextmanager
async def backlogs(depths: Sequence[int], say: Say) -> AsyncGenerator[list[Backlog]]:
    """A mesh for each depth, filled, all on one Triton."""
    async with AsyncExitStack() as stack:
        home = await stack.enter_async_context(servers.folder())
        triton = await stack.enter_async_context(servers.triton(home))
        made: list[Backlog] = []
        for depth in depths:
            mesh = await stack.enter_async_context(servers.mesh(home, triton.url, ENVIRON))
            redis = Redis.from_url(mesh.redis_url)
            stack.push_async_callback(redis.aclose)
            backlog = Backlog(mesh, redis, triton.pid or 0, depth)
            stack.callback(backlog.go_on)
            made.append(backlog)
        await asyncio.sleep(1.0)  # the probes of shared memory
        for backlog in made:
            await backlog.fill(say)
        yield made


@asynccontextmanager
async def _store(mesh: LocalMesh) -> AsyncGenerator[tuple[Store, models.Registry]]:
    environ = {name: value for name, value in mesh.service_environ().items() if name.startswith("MESH_")}
    read = settings.read(environ)
    async with connect(read) as store:
        yield store, models.load(read.models)

"""Cost as work grows: CPU, Redis commands and Redis bytes per picture while one thing grows and all else stays.

    depth    10 to 100,000 jobs queued, kept at that by a feeder that accepts one for each that ends
    results  none to 100,000 results kept
    clients  1 to 64
    workers  1 to 8 of each kind, a decoder each
    sizes    files of 10 KB to 50 MB: the same small picture with more and more bytes behind it, so that the way grows

All on the echo model. `make growth`, or `python -m benchmarks.growth --part depth`.
"""

import argparse
import asyncio
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from redis.asyncio import Redis

from benchmarks import servers
from benchmarks.processor_time import CpuTimes
from benchmarks.servers import BenchmarkError
from deploy.local.supervisor import LocalMesh
from shared import models, settings
from shared.messages import JobOptions
from shared.store import Store, connect
from visionmesh.bench import load, pictures, results
from visionmesh.bench.connection import address_of
from visionmesh.bench.endpoints import ENDPOINTS, request
from visionmesh.bench.measured import Phase

DEPTHS = (10, 1_000, 100_000)
KEPT = (0, 1_000, 100_000)
CLIENTS = (1, 4, 16, 64)
WORKERS = (1, 2, 4, 8)
SIZES = (10_000, 140_000, 1_000_000, 10_000_000, 50_000_000)
SMALL, TINY = (810, 1080), (160, 120)
AT_ONCE = 256
"""Calls of the feeder under way."""

MOST_DEPTH_RATIO = 1.1
ENVIRON = {
    "MESH_BYTE_BUDGET": str(1 << 40), "MESH_JOB_DEADLINE_S": "36000", "MESH_MAX_QUEUE_S": "36000",
    "MESH_RESULTS_STREAM_LENGTH": "10000",
}  # fmt: skip
"""Nothing is refused and nothing expires while queues are deep."""


class Cost(msgspec.Struct, frozen=True):
    """One step of a part: how much, pictures a second, and what each cost."""

    much: str
    per_second: float
    p50_ms: float | None
    cpu_ms: dict[str, float]
    redis_commands: float
    redis_bytes: float

    @property
    def total_cpu_ms(self) -> float:
        """CPU of all processes of the mesh."""
        return sum(self.cpu_ms.values())


class Books:
    """What a mesh and its Redis have used since this was opened."""

    def __init__(self, mesh: LocalMesh, redis: Redis, triton_pid: int) -> None:
        self._redis = redis
        # The gateway is left out where a feeder stands for it.
        self.pids = {part: process.pid or 0 for part, process in mesh.processes.items()} | {"triton": triton_pid}

    async def open(self, *, without: tuple[str, ...] = ()) -> None:
        """Begin."""
        self._before = await self._redis_figures()
        self._times = CpuTimes({part: pid for part, pid in self.pids.items() if part not in without})

    async def close(self, much: str, count: int, seconds: float, p50_ms: float | None) -> Cost:
        """End, with how many pictures it was for."""
        if not count:
            raise BenchmarkError(f"nothing came through at {much}")
        after = await self._redis_figures()
        commands, moved = (now - then for now, then in zip(after, self._before, strict=True))
        parts: dict[str, float] = {}
        for part, used_s in self._times.since().items():
            kind = part.split("-")[0]
            parts[kind] = parts.get(kind, 0.0) + used_s * 1000 / count
        return Cost(much, count / seconds, p50_ms, parts, commands / count, moved / count)

    async def _redis_figures(self) -> tuple[int, int]:
        stats = await self._redis.info("stats")
        return stats["total_commands_processed"], stats["total_net_input_bytes"] + stats["total_net_output_bytes"]


@asynccontextmanager
async def running(environ: dict[str, str] | None = None, workers: int = 1) -> AsyncGenerator[tuple[LocalMesh, Redis, Books]]:
    """A mesh with the echo model."""
    async with (
        servers.folder() as home,
        servers.triton(home) as triton,
        servers.mesh(home, triton.url, ENVIRON | (environ or {}), workers=workers) as mesh,
    ):
        redis = Redis.from_url(mesh.redis_url)
        try:
            await asyncio.sleep(1.0)  # the probe of shared memory
            yield mesh, redis, Books(mesh, redis, triton.pid or 0)
        finally:
            await redis.aclose()


async def through_http(mesh: LocalMesh, books: Books, much: str, bodies: list[bytes], clients: int, seconds: float) -> Cost:
    """The cost with so many clients."""
    address, endpoint = address_of(mesh.url), ENDPOINTS["jobs"]
    requests = [request(endpoint, address, "echo", body) for body in bodies]
    await load.run(address, endpoint, requests, Phase(name="warm-up", clients=clients, requests=2 * clients))
    await books.open()
    result = await load.run(address, endpoint, requests, Phase(name=much, clients=clients, duration_s=seconds))
    if result.bad:
        raise BenchmarkError(f"{much}: {result.errors}")
    return await books.close(much, result.good, result.wall_s, result.latency_ms.p50)


async def depth(seconds: float, say: Callable[[Cost], None]) -> list[Cost]:
    """Jobs queued."""
    body = pictures.generate(*TINY, quality=60)[0]
    costs: list[Cost] = []
    async with running() as (mesh, redis, books), _store(mesh) as (store, registry):
        for much in DEPTHS:
            feeding = asyncio.create_task(_keep_at(store, registry.get("echo"), redis, body, much))
            while await redis.xlen("{mesh:0}:queue:preprocess") < much * 0.9:
                await asyncio.sleep(0.2)
                if feeding.done():
                    feeding.result()
            await books.open(without=("gateway",))
            done, started_s = await _ended(redis), asyncio.get_running_loop().time()
            await asyncio.sleep(seconds)
            count, took_s = await _ended(redis) - done, asyncio.get_running_loop().time() - started_s
            costs.append(await books.close(f"{much:,} queued", count, took_s, None))
            say(costs[-1])
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
    return costs


async def _keep_at(store: Store, model: models.Model, redis: Redis, body: bytes, much: int) -> None:
    """Accept as many jobs as have ended, so that `much` of them wait."""
    while True:
        missing = much - await redis.xlen("{mesh:0}:queue:preprocess")
        for start in range(0, missing, AT_ONCE):
            await asyncio.gather(
                *(
                    store.jobs.accept(
                        store.jobs.new_id(None), model=model, options=JobOptions(), body=body, upload_bytes=len(body)
                    )
                    for _ in range(min(AT_ONCE, missing - start))
                )
            )
        await asyncio.sleep(0.02)


async def kept(seconds: float, say: Callable[[Cost], None]) -> list[Cost]:
    """Results kept."""
    tiny = pictures.generate(*TINY, quality=60)[0]
    bodies = pictures.generate(*SMALL)
    costs: list[Cost] = []
    async with running() as (mesh, _, books), _store(mesh) as (store, registry):
        model = registry.get("small_end2end")
        held = 0
        for much in KEPT:
            for start in range(held, much, AT_ONCE):
                await asyncio.gather(*(_end_one(store, model, tiny) for _ in range(min(AT_ONCE, much - start))))
            held = much
            costs.append(await through_http(mesh, books, f"{much:,} results kept", bodies, 16, seconds))
            say(costs[-1])
    return costs


async def _end_one(store: Store, model: models.Model, body: bytes) -> None:
    job = await store.jobs.accept(
        store.jobs.new_id(None), model=model, options=JobOptions(), body=body, upload_bytes=len(body)
    )  # fmt: skip
    await store.endings.cancel(job.id)


async def clients(seconds: float, say: Callable[[Cost], None]) -> list[Cost]:
    """Clients."""
    bodies = pictures.generate(*SMALL)
    costs: list[Cost] = []
    async with running() as (mesh, _, books):
        for much in CLIENTS:
            costs.append(await through_http(mesh, books, f"{much} clients", bodies, much, seconds))
            say(costs[-1])
    return costs


async def workers(seconds: float, say: Callable[[Cost], None]) -> list[Cost]:
    """Workers of each kind."""
    bodies = pictures.generate(*SMALL)
    costs: list[Cost] = []
    for much in WORKERS:
        async with running({"MESH_DECODERS": "1"}, workers=much) as (mesh, _, books):
            costs.append(await through_http(mesh, books, f"{much} + {much} workers", bodies, 16, seconds))
            say(costs[-1])
    return costs


async def sizes(seconds: float, say: Callable[[Cost], None]) -> list[Cost]:
    """Sizes of files."""
    tiny = pictures.generate(*TINY, quality=60)[0]
    costs: list[Cost] = []
    async with running() as (mesh, _, books):
        for much in SIZES:
            body = tiny + bytes(max(much - len(tiny), 0))
            costs.append(await through_http(mesh, books, f"{much / 1e6:g} MB", [body], 4, seconds))
            say(costs[-1])
    return costs


PARTS = {"depth": depth, "results": kept, "clients": clients, "workers": workers, "sizes": sizes}


@asynccontextmanager
async def _store(mesh: LocalMesh) -> AsyncGenerator[tuple[Store, models.Registry]]:
    environ = {name: value for name, value in mesh.service_environ().items() if name.startswith("MESH_")}
    read = settings.read(environ)
    async with connect(read) as store:
        yield store, models.load(read.models)


async def _ended(redis: Redis) -> int:
    """How many jobs have ended since the stream of results was made."""
    if not await redis.exists("mesh:stream:results"):
        return 0
    return (await redis.xinfo_stream("mesh:stream:results"))["entries-added"]


def text(part: str, costs: list[Cost]) -> str:
    """Markdown."""
    kinds = list(dict.fromkeys(kind for cost in costs for kind in cost.cpu_ms))
    head = [part, "per second", "p50 ms", "CPU ms", *kinds, "Redis commands", "Redis bytes"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for cost in costs:
        cells = [cost.much, f"{cost.per_second:.1f}", "" if cost.p50_ms is None else f"{cost.p50_ms:.1f}"]
        cells += [f"{cost.total_cpu_ms:.2f}", *(f"{cost.cpu_ms.get(kind, 0):.2f}" for kind in kinds)]
        cells += [f"{cost.redis_commands:.1f}", f"{cost.redis_bytes:,.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    if part == "depth":
        ratio = costs[-1].total_cpu_ms / costs[0].total_cpu_ms
        verdict = "pass" if ratio <= MOST_DEPTH_RATIO else "FAIL"
        lines += ["", f"cost per picture, 100,000 queued / 10 queued: {ratio:.2f}, wanted ≤ {MOST_DEPTH_RATIO}: {verdict}"]
    return "\n".join(lines)


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="growth", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", action="append", choices=[*PARTS], help="only these; all if none is named")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--to", type=Path, default=results.FOLDER)
    asked = parser.parse_args()

    def say(cost: Cost) -> None:
        line = f"{cost.much:<22} {cost.per_second:8.1f}/s  {cost.total_cpu_ms:6.2f} ms of CPU"
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - progress, for a person

    try:
        for part in asked.part or PARTS:
            costs = load.on_fast_loop(PARTS[part](asked.seconds, say))
            print(text(part, costs), end="\n\n")  # noqa: T201 - the result
            asked.to.mkdir(parents=True, exist_ok=True)
            path = asked.to / f"growth-{part}-{results.now().replace(':', '').replace('-', '')}.json"
            path.write_bytes(msgspec.json.format(msgspec.json.encode(costs), indent=1))
    except BenchmarkError as error:
        print(f"growth: {error}", file=sys.stderr)  # noqa: T201 - one line for a person
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Cost as work grows: CPU, Redis commands and Redis bytes per picture while one thing grows and all else stays.

    queued   10 to 100,000 jobs queued, kept at that by a feeder that sends a picture for each that ends
    kept     none to 100,000 results kept
    clients  1 to 64
    workers  1 to 8 of each kind, a decoder each
    sizes    files of 10 KB to 50 MB: the same small picture with more and more bytes behind it, so that the way grows

All on the echo model. The steps of a part take turns, there and back again, and a figure is the median of a step's turns.
`make growth`, or `python -m benchmarks.growth --part queued`; `--quick` shows in a minute that it works, and says little.
"""

import argparse
import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
from redis.asyncio import Redis

from benchmarks import books, queued, servers
from benchmarks.books import Books, Cost
from benchmarks.servers import BenchmarkError
from deploy.local.errors import StartError
from deploy.local.supervisor import LocalMesh
from shared.store import keys
from visionmesh.bench import load, pictures, results
from visionmesh.bench.connection import address_of
from visionmesh.bench.endpoints import ENDPOINTS, request
from visionmesh.bench.measured import Phase

KEPT = (0, 1_000, 100_000)
CLIENTS = (1, 4, 16, 64)
WORKERS = (1, 2, 4, 8)
SIZES = (10_000, 140_000, 1_000_000, 10_000_000, 50_000_000)
SMALL, TINY = (810, 1080), (160, 120)
COPIES_AT_ONCE = 1_000
MOST_QUEUED_RATIO = 1.1
FEW_CLIENTS, MANY_CLIENTS = 4, 16


class Scale(msgspec.Struct, frozen=True):
    """How long a turn is, how many each step has, and whether the large steps are left out."""

    seconds: float
    rounds: int
    is_quick: bool

    def steps(self, all_steps: tuple[int, ...]) -> tuple[int, ...]:
        """The steps of a part."""
        return all_steps[:2] if self.is_quick else all_steps


Say = Callable[[str], None]
Costs = dict[str, Cost]
"""Step -> median."""


@asynccontextmanager
async def running(environ: dict[str, str] | None = None, workers: int = 1) -> AsyncGenerator[tuple[LocalMesh, Redis, Books]]:
    """A mesh with the echo model."""
    async with (
        servers.folder() as home,
        servers.triton(home) as triton,
        servers.mesh(home, triton.url, queued.ENVIRON | (environ or {}), workers=workers) as mesh,
        Redis.from_url(mesh.redis_url) as redis,
    ):
        await asyncio.sleep(1.0)  # the probe of shared memory
        yield mesh, redis, Books(mesh, redis, triton.pid or 0)


async def in_turns(names: Sequence[str], rounds: int, measure: Callable[[int], Awaitable[Cost]], say: Say) -> Costs:
    """Measure each step so often, by its number, there and back again, so that what a machine does meanwhile falls on all."""
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    for turn in range(rounds):
        order = list(enumerate(names))
        for number, name in reversed(order) if turn % 2 else order:
            cost = await measure(number)
            costs[name].append(cost)
            line = (
                f"{name:<22} {cost.per_second:8.1f}/s  {cost.total_cpu_ms:7.2f} ms of CPU  {cost.total_commands:6.1f} commands"
            )
            say(f"{turn + 1}/{rounds} {line}")
    return {name: books.median(of_step) for name, of_step in costs.items()}


async def through_http(mesh: LocalMesh, opened: Books, bodies: list[bytes], clients: int, seconds: float) -> Cost:
    """The cost with so many clients."""
    address, endpoint = address_of(mesh.url), ENDPOINTS["jobs"]
    requests = [request(endpoint, address, queued.MODEL, body) for body in bodies]
    await load.run(address, endpoint, requests, Phase(name="warm-up", clients=clients, requests=2 * clients))
    await opened.open()
    result = await load.run(address, endpoint, requests, Phase(name="growth", clients=clients, duration_s=seconds))
    if result.bad:
        raise BenchmarkError(f"pictures are answered with {result.errors}")
    return await opened.close(result.good, result.wall_s, result.latency_ms.p50)


async def of_queued(scale: Scale, say: Say) -> Costs:
    """Jobs queued."""
    depths = scale.steps(queued.DEPTHS)
    async with queued.backlogs(depths, say) as backlogs:
        names = [f"{depth:,} queued" for depth in depths]
        return await in_turns(names, scale.rounds, lambda number: backlogs[number].turn(scale.seconds), say)


async def of_kept(scale: Scale, say: Say) -> Costs:
    """Results kept: a mesh for each number, with copies of a result that it made itself."""
    bodies, steps = pictures.generate(*SMALL), scale.steps(KEPT)
    async with AsyncExitStack() as stack:
        meshes: list[tuple[LocalMesh, Books]] = []
        home = await stack.enter_async_context(servers.folder())
        triton = await stack.enter_async_context(servers.triton(home))
        for much in steps:
            mesh = await stack.enter_async_context(servers.mesh(home, triton.url, queued.ENVIRON))
            redis = await stack.enter_async_context(Redis.from_url(mesh.redis_url))
            meshes.append((mesh, Books(mesh, redis, triton.pid or 0)))
            await asyncio.sleep(1.0)
            await through_http(mesh, meshes[-1][1], bodies, 1, 0.2)
            await _copy_results(redis, much)
            say(f"{much:,} results are kept")
        names = [f"{much:,} results kept" for much in steps]
        return await in_turns(
            names, scale.rounds, lambda number: through_http(*meshes[number], bodies, MANY_CLIENTS, scale.seconds), say
        )


async def _copy_results(redis: Redis, much: int) -> None:
    """Copies of a job that has ended, with its time to live."""
    (ended,) = (await redis.xrevrange(keys.RESULTS_STREAM, count=1)) or [None]
    if ended is None:
        raise BenchmarkError("no job has ended")
    source = keys.job(0, ended[1][b"id"].decode())
    for start in range(0, much, COPIES_AT_ONCE):
        pipeline = redis.pipeline(transaction=False)
        for number in range(start, min(start + COPIES_AT_ONCE, much)):
            pipeline.copy(source, keys.job(0, f"copy{number}"))
        await pipeline.execute()


async def of_clients(scale: Scale, say: Say) -> Costs:
    """Clients."""
    bodies, steps = pictures.generate(*SMALL), scale.steps(CLIENTS)
    async with running() as (mesh, _, opened):
        return await in_turns(
            [f"{much} client{'s' * (much > 1)}" for much in steps],
            scale.rounds,
            lambda number: through_http(mesh, opened, bodies, steps[number], scale.seconds),
            say,
        )


async def of_workers(scale: Scale, say: Say) -> Costs:
    """Workers of each kind."""
    bodies, steps = pictures.generate(*SMALL), scale.steps(WORKERS)

    async def measure(number: int) -> Cost:
        async with running({"MESH_DECODERS": "1"}, workers=steps[number]) as (mesh, _, opened):
            return await through_http(mesh, opened, bodies, MANY_CLIENTS, scale.seconds)

    return await in_turns([f"{much} + {much} workers" for much in steps], min(scale.rounds, 2), measure, say)


async def of_sizes(scale: Scale, say: Say) -> Costs:
    """Sizes of files."""
    tiny, steps = pictures.generate(*TINY)[0], scale.steps(SIZES)
    async with running() as (mesh, _, opened):
        return await in_turns(
            [f"{much / 1e6:g} MB" for much in steps],
            scale.rounds,
            lambda number: through_http(
                mesh, opened, [tiny + bytes(max(steps[number] - len(tiny), 0))], FEW_CLIENTS, scale.seconds
            ),
            say,
        )


PARTS: dict[str, Callable[[Scale, Say], Awaitable[Costs]]] = {
    "queued": of_queued, "kept": of_kept, "clients": of_clients, "workers": of_workers, "sizes": of_sizes,
}  # fmt: skip


def ratio(costs: Costs) -> float:
    """The last step's CPU per picture over the first's."""
    first, *_, last = costs.values()
    return last.total_cpu_ms / first.total_cpu_ms


def text(part: str, costs: Costs) -> str:
    """Markdown."""
    kinds = list(dict.fromkeys(kind for cost in costs.values() for kind in cost.cpu_ms))
    head = [part, "per second", "p50 ms", "CPU ms", *kinds, "Redis commands", "bytes to Redis", "bytes from Redis"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, cost in costs.items():
        cells = [name, f"{cost.per_second:.1f}", "" if cost.p50_ms is None else f"{cost.p50_ms:.1f}"]
        cells += [f"{cost.total_cpu_ms:.2f}", *(f"{cost.cpu_ms.get(kind, 0):.2f}" for kind in kinds)]
        cells += [f"{cost.total_commands:.1f}", f"{cost.in_bytes:,.0f}", f"{cost.out_bytes:,.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    if part == "queued":
        first, *_, last = costs
        verdict = "pass" if ratio(costs) <= MOST_QUEUED_RATIO else "FAIL"
        lines += ["", f"any | cost per picture, {last} / {first} | {ratio(costs):.2f} | ≤ {MOST_QUEUED_RATIO} | {verdict}"]
    return "\n".join(lines)


def main() -> int:
    """Read the arguments and run; 1 if the row of queued jobs is not reached, 2 if something cannot be measured."""
    parser = argparse.ArgumentParser(prog="growth", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", action="append", choices=[*PARTS], help="only these; all if none is named")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each step; the median counts")
    parser.add_argument("--quick", action="store_true", help="the two smallest steps, one short turn of each")
    parser.add_argument("--to", type=Path, default=results.FOLDER, help="folder of the JSON")
    asked = parser.parse_args()
    scale = Scale(1.0, 1, True) if asked.quick else Scale(asked.seconds, asked.rounds, False)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - progress, for a person

    holds = True
    try:
        for part in asked.part or PARTS:
            costs = load.on_fast_loop(PARTS[part](scale, say))
            print(text(part, costs), end="\n\n", flush=True)  # noqa: T201 - the result
            holds = holds and (part != "queued" or ratio(costs) <= MOST_QUEUED_RATIO)
            asked.to.mkdir(parents=True, exist_ok=True)
            path = asked.to / f"growth-{part}-{results.now().replace(':', '').replace('-', '')}.json"
            path.write_bytes(msgspec.json.format(msgspec.json.encode(costs), indent=1))
    except (BenchmarkError, StartError) as error:
        print(f"growth: {error}", file=sys.stderr)  # noqa: T201 - one line for a person
        return 2
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())

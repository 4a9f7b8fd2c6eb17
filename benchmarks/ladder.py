"""The ladder, `make bench`: the same pictures through a script, the mesh and the predecessor's kind of service.

    in-process   cv2, letterbox, tritonclient and NMS in one process, 1 or 8 threads
    peer         the same behind FastAPI and uvicorn, a worker for each core
    mesh         this project as `visionmesh up` runs it; `mesh-redis` with tensors through Redis

Besides, `submit`: how fast pictures are accepted, beside a bare handler; and `any`: what a picture costs behind a queue of 10
and one of 100,000 (`benchmarks.growth` measures more of that).

The arms take turns, several rounds of each, on one Triton; a figure is the median of the rounds. Each arm's answer to the
first picture is compared with the others' before anything is measured: arms that find different things do different work.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from benchmarks import growth, report, servers, submitting
from benchmarks.processor_time import CpuTimes
from benchmarks.servers import BenchmarkError
from deploy.local.errors import StartError
from visionmesh.bench import load, pictures, results
from visionmesh.bench.connection import Address, Connection, address_of
from visionmesh.bench.endpoints import ENDPOINTS, request
from visionmesh.bench.measured import Phase

SMALL, LARGE = (810, 1080), (4000, 3000)
MOST_CLIENTS, THREADS = 16, 8
WARM_UP_REQUESTS = 32


ARMS = ("in-process-1", "in-process-8", "peer-1", "peer-16", "mesh-1", "mesh-16")


class Load(msgspec.Struct, frozen=True):
    """A model and the size of the pictures that are sent to it."""

    model: str
    size: tuple[int, int]
    arms: tuple[str, ...] = ARMS


LOADS = {
    "detector": Load("small", SMALL),
    "echo": Load("echo", SMALL, (*ARMS, "mesh-redis-1", "mesh-redis-16")),
    "large": Load("echo", LARGE),
}

MORE = ("submit", "any")

Arm = Callable[[int, float], Awaitable[report.Sample]]
"""Runs with so many clients or threads for so many seconds."""


class Ladder:
    """The arms of one load, on servers that run."""

    def __init__(self, chosen: Load, bodies: list[bytes], files: list[Path]) -> None:
        self.chosen = chosen
        self.bodies = bodies
        self.files = files
        self.arms: dict[str, Arm] = {}
        self.answers: dict[str, Callable[[], Awaitable[list[tuple[int, float]]]]] = {}

    def add_service(self, name: str, address: Address, pids: Mapping[str, int]) -> None:
        """An arm over HTTP, by the endpoint that the mesh shares with its predecessor."""
        endpoint = ENDPOINTS["predict"]
        requests = [request(endpoint, address, self.chosen.model, body) for body in self.bodies]

        async def run(clients: int, seconds: float) -> report.Sample:
            warm = Phase(name="warm-up", clients=clients, requests=WARM_UP_REQUESTS)
            await load.run(address, endpoint, requests, warm)
            times = CpuTimes(pids)
            phase = Phase(name=name, clients=clients, duration_s=seconds)
            result = await load.run(address, endpoint, requests, phase)
            if result.bad or not result.good:
                raise BenchmarkError(f"{name} answers {result.errors or 'nothing'}")
            cpu_ms = {part: used_s * 1000 / result.good for part, used_s in times.since().items()}
            latency = result.latency_ms
            return report.Sample(result.per_second, latency.p50, latency.p99, cpu_ms | {"client": result.client_cpu_ms})

        async def answer() -> list[tuple[int, float]]:
            connection = Connection(address)
            with contextlib.closing(connection):
                found = json.loads((await connection.exchange(requests[0], 30)).body)["detections"]
            return sorted((each["class"], round(each["confidence"], 1)) for each in found)

        self.arms[name], self.answers[name] = run, answer

    def add_script(self, name: str, python: Path, environ: dict[str, str], triton_pid: int) -> None:
        """The arm without a service."""
        script = servers.PEER / "inprocess.py"

        async def run(threads: int, seconds: float) -> report.Sample:
            times = CpuTimes({"triton": triton_pid})
            process = await asyncio.create_subprocess_exec(
                python, script, self.chosen.model, str(threads), str(seconds), *self.files,
                env=environ, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            said, _ = await process.communicate()
            if process.returncode:
                raise BenchmarkError("the script of the in-process arm fails")
            figures = json.loads(said)
            # Its warm-up is in Triton's time too, but not in its count.
            cpu_ms = {"triton": times.since()["triton"] * 1000 / (figures["count"] + figures["warm_up"])}
            return report.Sample(
                figures["per_second"], figures["p50_ms"], figures["p99_ms"], cpu_ms | {"script": figures["cpu_ms"]}
            )

        self.arms[name] = run

    async def check(self) -> None:
        """See that all services find the same in the first picture.

        Raises:
            BenchmarkError: they do not.
        """
        found = {name: await answer() for name, answer in self.answers.items()}
        classes = {name: [class_id for class_id, _ in answer] for name, answer in found.items()}
        if len({tuple(ids) for ids in classes.values()}) != 1:
            raise BenchmarkError(f"the arms find different things: {found}")


async def measure(name: str, seconds: float, rounds: int, say: Callable[[str], None]) -> dict[str, list[report.Sample]]:
    """The samples of each arm of a load."""
    chosen = LOADS[name]
    async with AsyncExitStack() as stack:
        home = await stack.enter_async_context(servers.folder())
        bodies = await asyncio.to_thread(pictures.generate, *chosen.size)
        files = [home / f"{number}.jpg" for number in range(len(bodies))]
        for file, body in zip(files, bodies, strict=True):
            file.write_bytes(body)
        say(f"{name}: {len(bodies)} JPEGs of {chosen.size[0]}x{chosen.size[1]}, {len(bodies[0]) // 1000} kB and more; starting")
        triton = await stack.enter_async_context(servers.triton(home))
        triton_pid = triton.pid or 0
        ladder = Ladder(chosen, bodies, files)
        address, peer = await stack.enter_async_context(servers.peer(home, triton.url))
        ladder.add_script("in-process", servers.prepare_peer(), servers.peer_environ(triton.url), triton_pid)
        ladder.add_service("peer", address, {"peer": peer.pid or 0, "triton": triton_pid})
        for service in dict.fromkeys(arm.rsplit("-", 1)[0] for arm in chosen.arms if arm.startswith("mesh")):
            environ = {"MESH_TENSOR_STORE": "redis" if service == "mesh-redis" else "auto"}
            mesh = await stack.enter_async_context(servers.mesh(home, triton.url, environ))
            parts = {part: process.pid or 0 for part, process in mesh.processes.items()}
            ladder.add_service(service, address_of(mesh.url), parts | {"triton": triton_pid})
        await ladder.check()
        samples: dict[str, list[report.Sample]] = {arm: [] for arm in chosen.arms}
        for turn in range(rounds):
            for arm in chosen.arms:
                service, clients = arm.rsplit("-", 1)
                sample = await ladder.arms[service](int(clients), seconds)
                samples[arm].append(sample)
                say(f"{name} {turn + 1}/{rounds} {arm:<14} {sample.per_second:8.1f}/s  p50 {sample.p50_ms:7.2f} ms")
        return samples


async def run(names: list[str], seconds: float, rounds: int, folder: Path) -> int:
    """Measure, print, and keep; returns the exit code: 1 if a row is not reached."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - progress, for a person

    figures: dict[str, dict[str, report.Sample]] = {}
    for name in names:
        if name == "submit":
            figures[name] = await submitting.measure(seconds, rounds, say)
        elif name == "any":
            costs = await growth.of_queued(growth.Scale(seconds, rounds, is_quick=False), say)
            figures[name] = {step: report.Sample(cost.per_second, 0.0, 0.0, cost.cpu_ms) for step, cost in costs.items()}
        else:
            samples = await measure(name, seconds, rounds, say)
            figures[name] = {arm: report.median(of_arm) for arm, of_arm in samples.items()}
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing else runs any more
    path = folder / f"ladder-{results.now().replace(':', '').replace('-', '')}.json"
    document = {
        "made_at": results.now(),
        "machine": results.machine(),
        "seconds": seconds,
        "rounds": rounds,
        "figures": figures,
    }
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1))
    rows = report.judge(figures)
    print(report.text(figures, rows))  # noqa: T201 - the result
    print(f"\n{path}")  # noqa: T201
    return 0 if all(row.holds for row in rows) else 1


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--load", action="append", choices=[*LOADS, *MORE], help="only these; all if none is named")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each turn of an arm")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each arm; the median counts")
    parser.add_argument("--to", type=Path, default=results.FOLDER, help="folder of the JSON")
    asked = parser.parse_args()
    try:
        return load.on_fast_loop(run(asked.load or [*LOADS, *MORE], asked.seconds, asked.rounds, asked.to))
    except (BenchmarkError, StartError) as error:
        print(f"ladder: {error}", file=sys.stderr)  # noqa: T201 - one line for a person
        return 2


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(main())

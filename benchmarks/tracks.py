"""The four tracks beside each other on this machine's CPU, `.venv-tracks/bin/python -m benchmarks.tracks`.

One mesh serves the built-in detector on all of them; each gets the same JPEGs in a closed loop of 1 and of 16 clients. The
models take turns, several rounds of each, and a figure is the median of the rounds. CPU only: what a GPU does to the order is
not said.
"""

import argparse
import asyncio
import statistics
import sys

from benchmarks import servers
from benchmarks.servers import BenchmarkError
from deploy.export import tracks
from shared import models
from visionmesh.bench import load, pictures
from visionmesh.bench.connection import Address, Connection, address_of
from visionmesh.bench.endpoints import ENDPOINTS, request
from visionmesh.bench.measured import Phase, Result

CLIENTS = (1, 16)
WARM_UP_REQUESTS = 24
TRIES = 200
ENDPOINT = ENDPOINTS["jobs"]


async def run(size: tuple[int, int], seconds: float, rounds: int) -> None:
    """Measure and print a table."""
    async with servers.folder() as home:
        written = await asyncio.to_thread(tracks.write, home / "tracks")  # apart from the registry of `servers.mesh`
        bodies = await asyncio.to_thread(pictures.generate, *size)
        environ = {"MESH_MODELS": str(written.registry)}
        async with (
            servers.triton_of(home, written.repository, written.triton_models) as triton,
            servers.mesh(home, triton.url, environ) as mesh,
        ):
            address = address_of(mesh.url)
            rows = models.load(written.registry).models
            requests = {name: [request(ENDPOINT, address, name, body) for body in bodies] for name in rows}
            for name in rows:
                await _warm_up(address, requests[name])
            results: dict[tuple[str, int], list[Result]] = {(name, clients): [] for name in rows for clients in CLIENTS}
            for _ in range(rounds):
                for (name, clients), found in results.items():
                    phase = Phase(name=name, clients=clients, duration_s=seconds)
                    result = await load.run(address, ENDPOINT, requests[name], phase)
                    if result.bad or not result.good:
                        raise BenchmarkError(f"{name} answers {result.errors or 'nothing'}")
                    found.append(result)
    _say(f"JPEGs of {size[0]}x{size[1]}, {len(bodies[0]) // 1000} kB and more; medians of {rounds} rounds of {seconds:g} s")
    _say("| track | model | p50, 1 client | pictures/s, 1 client | pictures/s, 16 clients | mean batch, 16 clients |")
    for name, model in sorted(rows.items(), key=lambda row: row[1].track):
        alone, many = (results[name, clients] for clients in CLIENTS)
        p50_ms = statistics.median(result.latency_ms.p50 for result in alone)
        rates = [statistics.median(result.per_second for result in group) for group in (alone, many)]
        batch = statistics.median(result.mean_batch or 0 for result in many)
        _say(f"| {model.track} | `{name}` | {p50_ms:.1f} ms | {rates[0]:.0f} | {rates[1]:.0f} | {batch:.1f} |")


async def _warm_up(address: Address, requests: list[bytes]) -> None:
    """Ask until the model answers: PyTorch is loaded while the others serve already."""
    connection = Connection(address)
    for _ in range(TRIES):
        if ENDPOINT.read(await connection.exchange(requests[0], load.TIMEOUT_S)).error == "":
            break
        await asyncio.sleep(0.1)
    connection.close()
    await load.run(address, ENDPOINT, requests, Phase(name="warm-up", clients=8, requests=WARM_UP_REQUESTS))


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - for a person


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(810, 1080), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each; the median counts")
    asked = parser.parse_args()
    try:
        load.on_fast_loop(run(tuple(asked.size), asked.seconds, asked.rounds))
    except BenchmarkError as error:
        print(f"tracks: {error}", file=sys.stderr)  # noqa: T201 - one line for a person
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Flame graphs of the mesh under load, `make profile`: one for each Python process, sampled by py-spy.

Sixteen clients send 810x1080 JPEGs to the echo model, so that the mesh's own way is what is seen. Widths are samples: CPU
alone (what waits is not drawn).
"""

import argparse
import asyncio
import re
import sys
from pathlib import Path

import psutil

from benchmarks import servers
from benchmarks.servers import BenchmarkError
from visionmesh.bench import load, pictures
from visionmesh.bench.connection import address_of
from visionmesh.bench.endpoints import ENDPOINTS, request
from visionmesh.bench.measured import Phase

SIZE = (810, 1080)
CLIENTS, RATE = 16, 250
SETTLE_S = 3.0
FOLDER = servers.ROOT / "docs" / "flames"
PARTS = ("gateway", "preprocess", "inference")


async def run(model: str, seconds: float, folder: Path) -> None:
    """Record all parts at once.

    Raises:
        BenchmarkError: py-spy may not look at processes here (it needs ptrace).
    """
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing runs yet
    async with servers.folder() as home, servers.triton(home) as triton, servers.mesh(home, triton.url) as mesh:
        bodies = await asyncio.to_thread(pictures.generate, *SIZE)
        address, endpoint = address_of(mesh.url), ENDPOINTS["predict"]
        requests = [request(endpoint, address, model, body) for body in bodies]
        phase = Phase(name="profile", clients=CLIENTS, duration_s=SETTLE_S + seconds + 2)
        loading = asyncio.create_task(load.run(address, endpoint, requests, phase))
        await asyncio.sleep(SETTLE_S)
        pids = {part: _python(mesh.processes[part].pid or 0) for part in PARTS}
        pids["decoder"] = psutil.Process(pids["preprocess"]).children()[0].pid
        await asyncio.gather(*(_record(part, pid, seconds, folder) for part, pid in pids.items()))
        result = await loading
        if result.bad:
            raise BenchmarkError(f"under the profiler the mesh answers {result.errors}")
        print(f"{result.per_second:.0f} pictures/s while recorded; the graphs are in {folder}")  # noqa: T201 - the result


def _python(pid: int) -> int:
    """The process that works: Granian's are children of its supervisor."""
    process = psutil.Process(pid)
    workers = [
        child for child in process.children() if "granian" in " ".join(child.cmdline()) or child.cmdline()[-1:] == ["gateway"]
    ]
    workers = workers or [child for child in process.children() if "spawn_main" in " ".join(child.cmdline())]
    return workers[-1].pid if workers and "gateway" in " ".join(process.cmdline()) else pid


async def _record(part: str, pid: int, seconds: float, folder: Path) -> None:
    path = folder / f"{part}.svg"
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "py-spy"), "record", "--pid", str(pid), "--output", str(path),
        "--format", "flamegraph", "--rate", str(RATE), "--duration", str(round(seconds)),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    if process.returncode:
        raise BenchmarkError(f"py-spy cannot record {part}: {said.decode().strip().splitlines()[-1:]}")
    # Paths of this machine are of no use to anyone who looks at the graph.
    text = path.read_text("utf-8")
    text = re.sub(r"\(/[^()]*?/(?:site-packages|lib)/", "(", text).replace(f"({servers.ROOT}/", "(")
    path.write_text(re.sub(r'(<text id="title"[^>]*>)[^<]*', rf"\g<1>{part}", text), "utf-8")


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="make profile", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="echo", help="echo, small or small_end2end")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--to", type=Path, default=FOLDER)
    asked = parser.parse_args()
    try:
        load.on_fast_loop(run(asked.model, asked.seconds, asked.to))
    except BenchmarkError as error:
        print(f"profile: {error}", file=sys.stderr)  # noqa: T201 - one line for a person
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

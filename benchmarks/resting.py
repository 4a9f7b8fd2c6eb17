"""What the mesh takes when there is little to do: idle, one picture at a time, and eight 50 MB uploads that trickle in."""

import argparse
import asyncio
import sys

import psutil

from benchmarks.processor_time import CpuTimes
from benchmarks.servers import BenchmarkError
from deploy.local import ports
from deploy.local.supervisor import Options, running
from visionmesh.bench import load, pictures
from visionmesh.bench.connection import Address, address_of
from visionmesh.bench.endpoints import ENDPOINTS, request
from visionmesh.bench.measured import Phase

UPLOADS, UPLOAD_BYTES = 8, 50 * 1000 * 1000
PIECE_BYTES, TRICKLE_S = 64 * 1024, 12.0
SAMPLE_S = 0.1


async def run(idle_s: float) -> None:
    """Measure and print."""
    async with running(Options(port=ports.free(), environ={"MESH_LOG_LEVEL": "warning"})) as mesh:
        address = address_of(mesh.url)
        await asyncio.sleep(3.0)
        pids = {part: process.pid or 0 for part, process in mesh.processes.items()}
        times = CpuTimes(pids)
        await asyncio.sleep(idle_s)
        shares = {part: used_s / idle_s * 100 for part, used_s in times.since().items()}
        _say(
            f"idle: {sum(shares.values()):.2f}% of a core; "
            + ", ".join(f"{part} {share:.2f}" for part, share in shares.items())
        )

        body = pictures.generate(810, 1080)[0]
        requests = [request(ENDPOINTS["jobs"], address, "small", body)]
        result = await load.run(address, ENDPOINTS["jobs"], requests, Phase(name="single", clients=1, requests=150))
        waits = {stage: value for stage, value in result.stages_ms.items() if stage.endswith("_wait")}
        _say(
            "dispatch, one client: "
            + ", ".join(f"{stage} p50 {each.p50:.1f} p99 {each.p99:.1f} ms" for stage, each in waits.items())
        )

        gateway = psutil.Process(pids["gateway"])
        before = _rss_mb(gateway)
        sending = [asyncio.create_task(_trickle(address, body)) for _ in range(UPLOADS)]
        peak = before
        while not all(each.done() for each in sending):
            peak = {pid: max(mb, peak.get(pid, 0.0)) for pid, mb in _rss_mb(gateway).items()}
            await asyncio.sleep(SAMPLE_S)
        statuses = [each.result() for each in sending]
        _say(
            f"{UPLOADS} uploads of {UPLOAD_BYTES // 10**6} MB over {TRICKLE_S:g} s, answered {sorted(set(statuses))}: "
            f"largest gateway process {max(peak.values()):.0f} MB, {max(before.values()):.0f} MB before"
        )


def _rss_mb(root: psutil.Process) -> dict[int, float]:
    return {each.pid: each.memory_info().rss / 1e6 for each in (root, *root.children(recursive=True))}


async def _trickle(address: Address, picture: bytes) -> int:
    """Send a picture with zeros behind it, slowly; returns the status of the answer."""
    reader, writer = await asyncio.open_connection(*address)
    head = (
        f"POST /v1/jobs?model=small HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\ncontent-length: {UPLOAD_BYTES}\r\n\r\n"
    )
    writer.write(head.encode() + picture)
    loop = asyncio.get_running_loop()
    started_s, left, piece = loop.time(), UPLOAD_BYTES - len(picture), bytes(PIECE_BYTES)
    while left > 0:
        writer.write(piece[:left])
        left -= PIECE_BYTES
        await writer.drain()
        await asyncio.sleep(max((1 - left / UPLOAD_BYTES) * TRICKLE_S - (loop.time() - started_s), 0))
    line = await reader.readline()
    writer.close()
    return int(line.split()[1])


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the result


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="resting", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--idle", type=float, default=20.0, help="seconds that are looked at while nothing happens")
    asked = parser.parse_args()
    try:
        load.on_fast_loop(run(asked.idle))
    except (BenchmarkError, OSError) as error:
        print(f"resting: {error}", file=sys.stderr)  # noqa: T201 - one line for a person
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One chaos run: a mesh behind proxies, a load, faults one after another, and the reckoning."""

import asyncio
import random
import re
import tempfile
import time
from collections import Counter
from pathlib import Path

import msgspec
import redis.asyncio as redis

from deploy.export import repository
from deploy.local import ports
from deploy.local.supervisor import LocalMesh, Options, running
from deploy.local.triton import Triton
from deploy.local.valkey import Valkey
from tests.chaos.books import Books
from tests.chaos.faults import FAULTS, Scene
from tests.chaos.load import Load
from tests.chaos.memory import busy_slots, complete, counts_of, memory_of
from tests.chaos.proxy import Proxy

LEASE_S = 2.0
RESULT_TTL_S = 15
RECOVERY_S = 30.0
KEPT = {b"mesh:id-secret", b"mesh:stream:results", b"mesh:workers", b"mesh:tasks:health-check"}
QUEUES = ("*:queue:*", "*:outbox")


class Report(msgspec.Struct):
    """What a run showed."""

    accepted: int = 0
    ended: int = 0
    lost: int = 0
    twice: int = 0
    seconds: float = 0.0
    statuses: dict[str, int] = {}
    refused: dict[str, int] = {}
    faults: dict[str, int] = {}
    slowest_recovery_s: dict[str, float] = {}
    keys_left: list[str] = []
    files_left: list[str] = []
    errors_logged: list[str] = []
    rss_mb: dict[str, tuple[float, float]] = {}
    complete: bool = False
    """Whether every part had as many processes after as before."""
    slots_leaked: dict[str, int] = {}
    """Arena -> slots of shared memory that are leased though no job is left."""


async def chaos(
    *,
    jobs: int,
    faults: list[str],
    pause_s: float,
    seed: int,
    once: bool = False,
    result_ttl_s: int = RESULT_TTL_S,
    say: object = None,
) -> Report:
    """Have `jobs` jobs accepted while faults, in random order and again and again, are done to the mesh.

    With `once` each fault is done once, and jobs are sent until all were. Whatever still lies in Redis `result_ttl_s` after the
    last end, and what the sweep may take on top, is reported as left.
    """
    order = random.Random(seed)
    report, books = Report(), Books()
    tell = say if callable(say) else (lambda _line: None)
    with tempfile.TemporaryDirectory(prefix="visionmesh-chaos-") as name:
        folder = Path(name)
        valkey = Valkey(folder, ports.free())
        await valkey.start()
        triton = await _triton(folder)
        try:
            async with Proxy(valkey.port) as redis_wire, Proxy(int(triton.url.split(":")[1])) as triton_wire:
                options = Options(
                    port=ports.free(),
                    redis_url=f"redis://127.0.0.1:{redis_wire.port}/0",
                    triton_url=f"127.0.0.1:{triton_wire.port}",
                    environ={
                        "MESH_LEASE_S": str(LEASE_S),
                        "MESH_HEARTBEAT_S": "1",
                        "MESH_RESULT_TTL_S": str(result_ttl_s),
                        "MESH_DEAD_LETTER_TTL_S": str(result_ttl_s),
                        "MESH_JOB_DEADLINE_S": "120",
                        "MESH_BODY_TIMEOUT_S": "10",
                        "MESH_RESULTS_STREAM_LENGTH": "1000000",
                        "MESH_GATEWAY_WORKERS": "1",
                        "MESH_UPLOAD_FOLDER": str(folder / "uploads"),
                    },
                )
                async with running(options) as mesh:
                    mesh.processes["triton"] = triton  # so that faults find it; it is kept running below
                    keeper = asyncio.create_task(_keep_running(triton))
                    scene = Scene(mesh, valkey, redis_wire, triton_wire, LEASE_S)
                    try:
                        await _act(scene, books, report, jobs, faults, pause_s, once, order, tell)
                    finally:
                        keeper.cancel()
                        mesh.processes.pop("triton")
        finally:
            await triton.stop(0)
            await valkey.stop(5)
    return report


async def _act(
    scene: Scene,
    books: Books,
    report: Report,
    jobs: int,
    faults: list[str],
    pause_s: float,
    once: bool,
    order: random.Random,
    tell: object,
) -> None:
    assert callable(tell)
    started_s = time.monotonic()
    before, processes = memory_of(scene.mesh), counts_of(scene.mesh)
    reader = asyncio.create_task(books.read_forever(scene.valkey.url))
    enough = asyncio.Event()
    sending = asyncio.create_task(Load(scene.mesh.url, books, clients=12, most_open=60).send(jobs, enough))
    if not once:
        enough.set()
    counts: Counter[str] = Counter()
    queue: list[str] = []
    while not sending.done():
        queue = queue or order.sample(faults, len(faults))
        name = queue.pop()
        await FAULTS[name](scene)
        counts[name] += 1
        took_s = await _recovered(books, sending)
        report.slowest_recovery_s[name] = max(report.slowest_recovery_s.get(name, 0.0), round(took_s, 1))
        tell(f"{name}: work goes on after {took_s:.1f} s; {len(books.accepted)} accepted, {len(books.open)} open")
        if once and not queue:
            enough.set()
            break
        if not sending.done():
            await asyncio.sleep(order.uniform(pause_s / 2, pause_s))
    await sending
    await books.closed(150)
    report.accepted, report.ended = len(books.accepted), len(books.accepted.keys() & books.ends.keys())
    report.lost, report.twice = len(books.open), len(books.twice)
    report.statuses, report.refused, report.faults = dict(books.statuses), dict(books.refused), dict(counts)
    report.seconds = round(time.monotonic() - started_s, 1)
    report.complete = await complete(scene.mesh, processes)
    after = memory_of(scene.mesh)
    report.rss_mb = {part: (before[part], after[part]) for part in before if part in after}
    report.slots_leaked = await busy_slots(scene.mesh)
    report.errors_logged = _errors(scene.mesh)
    report.keys_left = await keys_left_in(scene.valkey.url)
    report.files_left = await files_left_in(Path(scene.mesh.service_environ()["MESH_UPLOAD_FOLDER"]))
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)


async def _recovered(books: Books, sending: asyncio.Task[None]) -> float:
    """How long after the fault the first job ended that was accepted after it."""
    over_s = time.monotonic()
    while not sending.done() and not any(at_s > over_s and job_id in books.ends for job_id, at_s in books.latest()):
        await asyncio.sleep(0.05)
        if time.monotonic() - over_s > RECOVERY_S * 2:
            break
    return time.monotonic() - over_s


async def keys_left_in(url: str) -> list[str]:
    """Keys that outlive their time: everything but the queues' streams, the secret, the results and the heartbeats."""
    left: list[str] = []
    client = redis.Redis.from_url(url)
    try:
        deadline_s = time.monotonic() + RESULT_TTL_S + 20
        while time.monotonic() < deadline_s:
            keys = [key async for key in client.scan_iter("*", count=1000)]
            left = sorted(key.decode() for key in keys if key not in KEPT and not re.search(b":queue:|:outbox$", key))
            if not left:
                break
            await asyncio.sleep(0.2)
        for key in [key for queue in QUEUES async for key in client.scan_iter(queue)]:
            if await client.xlen(key) or (await client.xpending(key, "workers"))["pending"]:
                left.append(f"{key.decode()} is not empty")
    finally:
        await client.aclose()
    return left


async def files_left_in(uploads: Path) -> list[str]:
    """Pictures of ended jobs that the sweep does not remove."""
    left: list[str] = []
    deadline_s = time.monotonic() + 15
    while time.monotonic() < deadline_s:
        left = [path.name for path in uploads.glob("*/*") if not path.name.startswith(".")]  # noqa: ASYNC240 - all is over
        if not left:
            break
        await asyncio.sleep(0.2)
    return left


def _errors(mesh: LocalMesh) -> list[str]:
    """What the services logged as errors: chaos is no excuse for an exception nobody thought of."""
    lines = [line for log in sorted(mesh.folder.glob("*.log")) for line in log.read_text("utf-8", "replace").splitlines()]
    return [line for line in lines if '"level": "error"' in line]


async def _triton(folder: Path) -> Triton:
    models = folder / "models"
    names = repository.write_default(models)
    triton = Triton(folder, models, names, http_port=ports.free(), grpc_port=ports.free(), metrics_port=ports.free())
    await triton.start()
    while not await asyncio.to_thread(triton.ready):  # noqa: ASYNC110 - nothing to await in another process
        await asyncio.sleep(0.05)
    return triton


async def _keep_running(triton: Triton) -> None:
    while True:
        await triton.wait()
        await asyncio.sleep(0.3)
        await triton.start()

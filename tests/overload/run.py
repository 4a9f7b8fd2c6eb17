"""One overload run: the peak in a closed loop, a multiple of it in an open one, how the mesh comes back, and the peak again."""

import asyncio
import math
import os
import time
from collections import Counter

import httpx
import msgspec
import psutil

from deploy.local import ports
from deploy.local.supervisor import LocalMesh, Options
from tests.chaos.books import Books
from tests.chaos.memory import memory_of
from tests.chaos.run import keys_left_in
from tests.overload.apart import Cores, running_on
from tests.overload.load import Clients, Load, Sent
from visionmesh.bench.connection import address_of
from visionmesh.bench.pictures import generate

PEAK_OPEN = 48
WARM_UP_S = 5.0
RESULT_TTL_S = 15
RECOVERED_MS = 500.0
"""A picture that is sent and waited for is done within this time again."""


class Latency(msgspec.Struct):
    """Milliseconds from when a picture was due to its answer."""

    count: int
    p50: float
    p99: float
    most: float

    def __str__(self) -> str:
        return f"{self.count}, p50 {self.p50} ms, p99 {self.p99} ms, most {self.most} ms"


class Report(msgspec.Struct, kw_only=True):
    """What a run showed. Rates are jobs that succeeded a second."""

    cores: Cores
    clients: Clients
    peaks_per_s: tuple[float, float]
    """Before and after; the goodput is a share of their mean."""
    offered_per_s: float
    goodput_per_s: float
    accepted: Latency
    refused: Latency
    retry_after_s: dict[int, int]
    unanswered: int
    recovery_s: float
    lost: int
    twice: int
    statuses: dict[str, int]
    errors: dict[str, int]
    keys_left: list[str]
    rss_mb: dict[str, tuple[float, float]]
    cpu_ms: dict[str, float]
    """Processor time of each part while overloaded, for each picture that was offered."""
    strangers: float
    """The share of all cores that processes which have nothing to do with it took meanwhile: what was not to be had."""

    @property
    def peak_per_s(self) -> float:
        """What the mesh can do."""
        return sum(self.peaks_per_s) / 2

    @property
    def share_of_peak(self) -> float:
        """Goodput under overload as a share of the peak."""
        return self.goodput_per_s / self.peak_per_s


async def overload(
    *,
    seconds: float,
    times: float,
    peak_s: float,
    cores: Cores = "shared",
    clients: Clients = "send",
    say: object = None,
    environ: dict[str, str] | None = None,
) -> Report:
    """Start a mesh, find its peak, offer `times` as much for `seconds`, see it recover, and find its peak again."""
    tell = say if callable(say) else (lambda _line: None)
    own = {
        "MESH_RESULT_TTL_S": str(RESULT_TTL_S),
        "MESH_DEAD_LETTER_TTL_S": str(RESULT_TTL_S),
        "MESH_RESULTS_STREAM_LENGTH": "1000000",
    }
    async with running_on(cores, Options(port=ports.free(), environ=own | (environ or {}))) as mesh:
        books = Books()
        reader = asyncio.create_task(books.read_forever(mesh.redis_url))
        try:
            return await _act(mesh, books, cores, clients, seconds, times, peak_s, tell)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)


async def _act(
    mesh: LocalMesh, books: Books, cores: Cores, clients: Clients, seconds: float, times: float, peak_s: float, tell: object
) -> Report:
    assert callable(tell)
    load = Load(address_of(mesh.url), books, clients)
    peak = await _peak(load, books, peak_s)
    before, spent_before, busy_before_s = memory_of(mesh), _spent_s(mesh), _busy_s()
    tell(f"peak: {peak:.1f} a second; now {peak * times:.0f} a second for {seconds:.0f} s")
    load.sent.clear()
    began_s = time.monotonic()
    watching = asyncio.create_task(_watch(load, books, tell))
    await load.open(seconds, peak * times)
    ended_s = time.monotonic()
    watching.cancel()
    spent, busy_s = _spent_s(mesh), _busy_s() - busy_before_s
    sent, load.sent = load.sent, []
    recovery_s = await _recovered(mesh.url)
    tell(f"recovered after {recovery_s:.1f} s")
    await books.closed(150)
    after = memory_of(mesh)
    peak_after = await _peak(load, books, peak_s)
    by_status: dict[bool, list[float]] = {True: [], False: []}
    for one in sent:
        if one.status:
            by_status[one.status == 202].append(one.took_ms)
    return Report(
        cores=cores,
        clients=clients,
        peaks_per_s=(peak, peak_after),
        offered_per_s=len(sent) / (ended_s - began_s),
        goodput_per_s=per_second(books, began_s + WARM_UP_S, ended_s),
        accepted=latency(by_status[True]),
        refused=latency(by_status[False]),
        retry_after_s=dict(sorted(Counter(one.retry_after_s for one in sent if one.status in (429, 503)).items())),
        unanswered=sum(1 for one in sent if not one.status),
        recovery_s=recovery_s,
        lost=len(books.open),
        twice=len(books.twice),
        statuses=dict(books.statuses),
        errors=odd(sent),
        keys_left=await keys_left_in(mesh.redis_url),
        rss_mb={part: (before[part], after[part]) for part in before if part in after},
        cpu_ms={part: round((spent[part] - spent_before[part]) / len(sent) * 1000, 2) for part in spent},
        strangers=max(busy_s - sum(spent.values()) + sum(spent_before.values()), 0)
        / (ended_s - began_s)
        / (os.cpu_count() or 1),
    )


async def _peak(load: Load, books: Books, seconds: float) -> float:
    """How many pictures a second the mesh can do, once it is warm."""
    started_s = time.monotonic()
    await load.closed(WARM_UP_S + seconds, PEAK_OPEN)
    peak = per_second(books, started_s + WARM_UP_S, started_s + WARM_UP_S + seconds)
    await books.closed(60)
    return peak


def _spent_s(mesh: LocalMesh) -> dict[str, float]:
    """Processor seconds that each part, and this process with its clients, has taken so far."""
    pids = {name: process.pid for name, process in mesh.processes.items() if process.pid} | {"clients": os.getpid()}
    return {name: _family_s(psutil.Process(pid), with_children=name != "clients") for name, pid in pids.items()}


def _busy_s() -> float:
    """Processor seconds that this machine has worked so far."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice  # guests are in `user` already


def _family_s(process: psutil.Process, *, with_children: bool) -> float:
    if not with_children:
        return sum(process.cpu_times()[:2])
    # Of children that have ended meanwhile as well, once their parents have seen it.
    return sum(sum(member.cpu_times()[:4]) for member in [process, *process.children(recursive=True)])


def odd(sent: list[Sent]) -> dict[str, int]:
    """Answers that are neither an acceptance nor a refusal."""
    return dict(Counter(str(one.status) for one in sent if one.status not in (0, 202, 429, 503)))


def per_second(books: Books, from_s: float, to_s: float) -> float:
    return sum(1 for at_s in books.ended_at.values() if from_s <= at_s < to_s) / (to_s - from_s)


def latency(values: list[float]) -> Latency:
    ordered = sorted(values)

    def at(share: float) -> float:
        return round(ordered[min(math.ceil(len(ordered) * share), len(ordered)) - 1], 1) if ordered else 0.0

    return Latency(len(ordered), at(0.5), at(0.99), at(1.0))


async def _watch(load: Load, books: Books, tell: object) -> None:
    assert callable(tell)
    while True:
        await asyncio.sleep(15)
        tell(f"sent {len(load.sent)}, accepted {len(books.accepted)}, ended {len(books.ended_at)}")


async def _recovered(url: str) -> float:
    """How long until a picture is taken at once and done at once again."""
    over_s = time.monotonic()
    photo = generate(810, 1080)[0]
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        while True:
            sent_s = time.monotonic()
            answer = await http.post("/v1/jobs", content=photo, headers={"content-type": "image/jpeg", "prefer": "wait=30"})
            now_s = time.monotonic()
            if answer.status_code == 200 and (now_s - sent_s) * 1000 < RECOVERED_MS:
                return now_s - over_s
            await asyncio.sleep(0.2)

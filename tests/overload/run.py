"""One overload run: the peak in a closed loop, a multiple of it in an open one, and how the mesh comes back."""

import asyncio
import math
import time
from collections import Counter

import httpx
import msgspec

from deploy.local import ports
from deploy.local.supervisor import LocalMesh, Options, running
from tests.chaos.books import Books
from tests.chaos.run import keys_left_in, memory_of
from tests.overload.load import Load, Sent
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


class Report(msgspec.Struct, kw_only=True):
    """What a run showed. Rates are jobs that succeeded a second."""

    peak_per_s: float
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

    @property
    def share_of_peak(self) -> float:
        """Goodput under overload as a share of the peak."""
        return self.goodput_per_s / self.peak_per_s


async def overload(
    *, seconds: float, times: float, peak_s: float, say: object = None, environ: dict[str, str] | None = None
) -> Report:
    """Start a mesh, find its peak, offer `times` as much for `seconds`, and see it recover."""
    tell = say if callable(say) else (lambda _line: None)
    own = {
        "MESH_RESULT_TTL_S": str(RESULT_TTL_S),
        "MESH_DEAD_LETTER_TTL_S": str(RESULT_TTL_S),
        "MESH_RESULTS_STREAM_LENGTH": "1000000",
    }
    async with running(Options(port=ports.free(), environ=own | (environ or {}))) as mesh:
        books = Books()
        reader = asyncio.create_task(books.read_forever(mesh.redis_url))
        try:
            return await _act(mesh, books, seconds, times, peak_s, tell)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)


async def _act(mesh: LocalMesh, books: Books, seconds: float, times: float, peak_s: float, tell: object) -> Report:
    assert callable(tell)
    load = Load(address_of(mesh.url), books)
    started_s = time.monotonic()
    await load.closed(WARM_UP_S + peak_s, PEAK_OPEN)
    peak = _per_second(books, started_s + WARM_UP_S, started_s + WARM_UP_S + peak_s)
    await books.closed(60)
    before = memory_of(mesh)
    tell(f"peak: {peak:.1f} a second; now {peak * times:.0f} a second for {seconds:.0f} s")
    load.sent.clear()
    began_s = time.monotonic()
    watching = asyncio.create_task(_watch(load, books, tell))
    await load.open(seconds, peak * times)
    ended_s = time.monotonic()
    watching.cancel()
    recovery_s = await _recovered(mesh.url)
    tell(f"recovered after {recovery_s:.1f} s")
    await books.closed(150)
    by_status: dict[bool, list[float]] = {True: [], False: []}
    for sent in load.sent:
        if sent.status:
            by_status[sent.status == 202].append(sent.took_ms)
    after = memory_of(mesh)
    return Report(
        peak_per_s=peak,
        offered_per_s=len(load.sent) / (ended_s - began_s),
        goodput_per_s=_per_second(books, began_s + WARM_UP_S, ended_s),
        accepted=_latency(by_status[True]),
        refused=_latency(by_status[False]),
        retry_after_s=dict(sorted(Counter(sent.retry_after_s for sent in load.sent if sent.status in (429, 503)).items())),
        unanswered=sum(1 for sent in load.sent if not sent.status),
        recovery_s=recovery_s,
        lost=len(books.open),
        twice=len(books.twice),
        statuses=dict(books.statuses),
        errors=_odd(load.sent),
        keys_left=await keys_left_in(mesh.redis_url),
        rss_mb={part: (before[part], after[part]) for part in before if part in after},
    )


def _odd(sent: list[Sent]) -> dict[str, int]:
    """Answers that are neither an acceptance nor a refusal."""
    return dict(Counter(str(one.status) for one in sent if one.status not in (0, 202, 429, 503)))


def _per_second(books: Books, from_s: float, to_s: float) -> float:
    return sum(1 for at_s in books.ended_at.values() if from_s <= at_s < to_s) / (to_s - from_s)


def _latency(values: list[float]) -> Latency:
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

"""Short forms of `make overload`: more than can be done, for seconds; what was accepted ends, the rest is told to wait."""

import asyncio
import contextlib
import os
import time
from pathlib import Path

import psutil
import pytest
import redis

from deploy.local.supervisor import ASKERS_NICE, LocalMesh
from tests.chaos.books import RESULTS, Books
from tests.conftest import Background
from tests.gateway.conftest import gateway_process
from tests.overload.load import Load, Sent
from tests.overload.run import PEAK_OPEN, latency, odd, overload, per_second
from visionmesh.bench.connection import address_of


def test_what_is_too_much_is_refused_fast_and_nothing_is_lost(mesh: LocalMesh, background: Background, tmp_path: Path) -> None:
    # A gateway of its own beside the mesh's, which lets in no more than the least.
    with gateway_process(background, tmp_path, mesh.redis_url, {"MESH_MAX_QUEUE_S": "2"}) as url:
        peak, goodput, sent, books = asyncio.run(_overloaded(url, mesh.redis_url))
    answers = {status: [one for one in sent if one.status == status] for status in (0, 202, 503)}
    assert answers[202]
    assert answers[503]
    assert not answers[0]
    assert odd(sent) == {}
    assert all(one.retry_after_s >= 1 for one in answers[503])
    # Loosely, for the cores have other work: `make overload` looks closer.
    assert latency([one.took_ms for one in answers[503]]).p50 < 250
    assert goodput > peak * 0.25
    assert (books.open, books.twice) == (set(), [])


def test_what_was_accepted_goes_before_who_asks(mesh: LocalMesh) -> None:
    ours = os.nice(0)
    niceness = {name: psutil.Process(process.pid).nice() - ours for name, process in mesh.processes.items() if process.pid}
    asked = {name: more for name, more in niceness.items() if name in ("gateway", "tasks")}
    assert asked == {"gateway": ASKERS_NICE, "tasks": ASKERS_NICE}
    assert all(more == 0 for name, more in niceness.items() if name not in asked)
    groups = {name: Path(f"/proc/{process.pid}/autogroup") for name, process in mesh.processes.items() if process.pid}
    if groups["gateway"].exists():  # else the kernel does not share out cores by session
        given = {name: int(group.read_text().split()[-1]) for name, group in groups.items()}
        assert given == {name: ASKERS_NICE if name in asked else 0 for name in groups}


async def _overloaded(url: str, redis_url: str) -> tuple[float, float, list[Sent], Books]:
    """Ends in a second at the peak and under overload, what was sent meanwhile, and the books of all that was accepted."""
    with redis.Redis.from_url(redis_url) as client:
        ended_before = client.xrevrange(RESULTS, count=1)
    books = Books(after=ended_before[0][0].decode() if ended_before else "0")
    reader = asyncio.create_task(books.read_forever(redis_url))
    load = Load(address_of(url), books, "send")
    try:
        began_s = time.monotonic()
        await load.closed(2, PEAK_OPEN)
        peak = per_second(books, began_s + 0.5, time.monotonic())
        load.sent.clear()
        began_s = time.monotonic()
        # Enough to fill the queue at once whatever the rate, and to go on for a while.
        await load.open(3, max(peak * 3, 200))
        goodput = per_second(books, began_s, time.monotonic())
        assert await books.closed(60)
    finally:
        reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reader
    return peak, goodput, load.sent, books


@pytest.mark.slow
def test_overload_is_refused_and_nothing_accepted_is_lost() -> None:
    # Goodput and percentiles need a machine of one's own: `make overload` looks at those.
    environ = {"MESH_BYTE_BUDGET": "16000000", "MESH_RESULT_TTL_S": "5", "MESH_DEAD_LETTER_TTL_S": "5"}
    report = asyncio.run(overload(seconds=8, times=3, peak_s=1, environ=environ))
    assert report.refused.count > 0
    assert report.accepted.count > 0
    assert report.errors == {}
    assert report.unanswered == 0
    assert min(report.retry_after_s) >= 1
    assert report.recovery_s < 30
    assert (report.lost, report.twice) == (0, 0)
    assert set(report.statuses) == {"succeeded"}
    assert report.keys_left == []

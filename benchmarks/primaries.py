"""`python -m benchmarks.primaries`: what a job costs Valkey, on one server and on clusters of more and more primaries.

Jobs go through the store alone, from accept to finish, with bodies of 143 KB and tensors in shared memory, so that nothing but
Valkey and one Python process work. In a cluster what is published at one primary is sent to all: the table shows what that
costs, and how many jobs a second so many primaries could do.
"""

import argparse
import asyncio
import functools
import tempfile
import time
from pathlib import Path

import msgspec
import psutil

from deploy.local.process import Process
from shared import models
from shared.messages import ImageInfo, JobOptions, Outcome, Placement
from shared.settings import Settings
from shared.store import Store, connect
from tests.cluster import Nodes
from tests.conftest import Background

BODY = bytes(143 * 1024)
AT_ONCE = 32
PARTITIONS = 12
"""The same for all, so that queues are read as often."""
MODEL = models.load().get("small")


class Cost(msgspec.Struct):
    """CPU of all servers together, in milliseconds per job; jobs that ended in a second, with whatever else ran here."""

    servers_ms: float
    per_s: float


async def _worker(store: Store, stage: str, count: list[int]) -> None:
    async with store.consumer(stage, stage) as consumer:
        while count[0] > 0:
            tickets = await consumer.take(8, 0.2)
            if stage == "preprocess":
                await asyncio.gather(
                    *(
                        store.claims.decoded(
                            ticket,
                            image=ImageInfo(810, 1080, "jpeg"),
                            placement=Placement(0.5, 0.5, 0, 30),
                            tensor=b"",
                            timings_ms={},
                            slot="elsewhere:0:1:2",
                        )
                        for ticket in tickets
                    )
                )
            elif tickets:
                outcome = Outcome(detections=[], batch_size=len(tickets), timings_ms={})
                count[0] -= len(await store.endings.finish([(ticket, outcome) for ticket in tickets]))
            for ticket in tickets:
                consumer.done(ticket)


async def _client(store: Store, left: list[int]) -> None:
    while left[0] > 0:
        left[0] -= 1
        job_id = store.jobs.new_id()
        with store.events.expect(job_id) as waiter:
            await store.jobs.accept(
                job_id, model=MODEL, options=JobOptions(), body=BODY, upload_bytes=len(BODY), reply_to=store.events.channel
            )
            await waiter.wait(30)


async def _measure(settings: Settings, servers: list[Process], jobs: int) -> Cost:
    async with connect(settings) as store, store.events:
        for count in (AT_ONCE * 4, jobs):  # first to warm up
            before = sum(_cpu_s(server) for server in servers)
            began_s = time.perf_counter()
            left, ended = [count], [count]
            await asyncio.gather(
                *(_client(store, left) for _ in range(AT_ONCE)),
                *(_worker(store, s, ended) for s in ("preprocess", "inference:small")),
            )
            took_s = time.perf_counter() - began_s
            spent_s = sum(_cpu_s(server) for server in servers) - before
    return Cost(spent_s * 1000 / jobs, jobs / took_s)


def _cpu_s(server: Process) -> float:
    times = psutil.Process(server.pid).cpu_times()
    return times.user + times.system


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--primaries", type=int, nargs="+", default=[1, 2, 3, 6])
    arguments = parser.parse_args()
    say = functools.partial(print, flush=True)  # what a person started this for
    say("| primaries | CPU per job, all together, ms | jobs a second, if each has a core and its share |\n|---|---|---|")
    for primaries in arguments.primaries:
        with Background() as background, tempfile.TemporaryDirectory() as folder:
            nodes = Nodes(Path(folder), background.run, primaries)
            nodes.start()
            try:
                settings = Settings(redis_url=nodes.url, partitions=PARTITIONS, byte_budget=1 << 31)
                cost = asyncio.run(_measure(settings, list(nodes.servers), arguments.jobs))
            finally:
                nodes.stop()
        say(f"| {primaries} | {cost.servers_ms:.3f} | {1000 * primaries / cost.servers_ms:.0f} |")


if __name__ == "__main__":
    main()

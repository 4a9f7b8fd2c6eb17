"""What a job costs Redis does not grow with how many wait, how many have ended, or how many were buried."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest
import redis

from shared.errors import Internal
from shared.messages import ImageInfo, Placement
from shared.settings import Settings
from shared.store import Store, connect
from shared.store.streams import Consumer
from tests.shared.store.conftest import accepted, changed, finished

JOBS = 10
FEW, MANY = 10, 500

MOST_COMMANDS = 60
"""Of one job from accept to end, those within scripts too: 53 when this was written."""

MOST_BYTES = 8_000
"""To Redis and from it, of one job whose tensor lies in shared memory: 5,082 when this was written."""


class Cost(NamedTuple):
    """Of one job."""

    commands: float
    moved_bytes: float


@pytest.fixture
def calm(settings: Settings) -> Settings:
    """Nothing is refused, and no lease is renewed meanwhile."""
    return changed(settings, lease_s=3600.0, byte_budget=1 << 40, dead_letters=100)


async def cost(settings: Settings, work: Callable[[], Awaitable[None]], jobs: int = JOBS) -> Cost:
    """What `work` costs, shared by so many jobs."""
    with redis.Redis.from_url(settings.redis_url) as client:

        def figures() -> tuple[int, int]:
            calls, stats = client.info("commandstats"), client.info("stats")
            count = sum(each["calls"] for name, each in calls.items() if name != "cmdstat_info")
            return count, stats["total_net_input_bytes"] + stats["total_net_output_bytes"]

        figures()
        own_bytes = -figures()[1] + figures()[1]
        before = figures()
        await work()
        after = figures()
    return Cost((after[0] - before[0]) / jobs, (after[1] - before[1] - own_bytes) / jobs)


async def through(store: Store, preprocess: Consumer, inference: Consumer, count: int) -> None:
    """Take jobs out of their queue and to their end."""
    for _ in range(count):
        (ticket,) = await preprocess.take(1)
        placement, image = Placement(0.5, 0.5, 0, 30), ImageInfo(640, 480, "jpeg")
        assert await store.claims.decoded(ticket, image=image, placement=placement, tensor=b"", timings_ms={}, slot="arena:1:1")
        preprocess.done(ticket)
        (ticket,) = await inference.take(1)
        assert await finished(store, ticket)
        inference.done(ticket)


def test_jobs_that_wait_and_results_that_are_kept_make_no_job_dearer(calm: Settings) -> None:
    async def scenario() -> None:
        async with (
            connect(calm) as store,
            store.consumer("preprocess", "p") as preprocess,
            store.consumer("inference:small", "i") as inference,
        ):

            async def one_for_one() -> None:
                for _ in range(JOBS):
                    await accepted(store)
                await through(store, preprocess, inference, JOBS)

            await asyncio.gather(*(accepted(store) for _ in range(FEW)))
            await one_for_one()  # scripts are loaded, groups are made
            few = await cost(calm, one_for_one)
            assert few.commands <= MOST_COMMANDS
            assert few.moved_bytes <= MOST_BYTES
            await asyncio.gather(*(accepted(store) for _ in range(MANY - FEW)))
            many = await cost(calm, one_for_one)
            await through(store, preprocess, inference, MANY - FEW)
            kept = await cost(calm, one_for_one)
            for each in (many, kept):
                assert each.commands <= few.commands + 0.5
                assert each.moved_bytes <= few.moved_bytes + 200

    asyncio.run(scenario())


def test_upkeep_asks_no_more_when_more_waits(calm: Settings) -> None:
    async def scenario() -> None:
        async with connect(calm) as store, store.consumer("preprocess", "p") as preprocess:

            async def upkeep() -> None:
                await store.endings.sweep(0)
                await store.depths(["small"])
                await store.waiting_tensors(["small"])
                await store.budget()

            await asyncio.gather(*(accepted(store) for _ in range(FEW)))
            assert await preprocess.take(1)
            await upkeep()
            few = await cost(calm, upkeep, 1)
            await asyncio.gather(*(accepted(store) for _ in range(MANY)))
            many = await cost(calm, upkeep, 1)
            assert many.commands <= few.commands
            assert many.moved_bytes <= few.moved_bytes + 200

    asyncio.run(scenario())


def test_dead_letters_make_no_failure_dearer(calm: Settings) -> None:
    async def scenario() -> None:
        async with connect(calm) as store, store.consumer("preprocess", "p") as preprocess:

            async def fail(count: int = JOBS) -> None:
                for _ in range(count):
                    await accepted(store)
                    (ticket,) = await preprocess.take(1)
                    assert await store.endings.fail(ticket, Internal("no"))
                    preprocess.done(ticket)

            await fail(2)
            few = await cost(calm, fail)
            await fail(120)
            many = await cost(calm, fail)
            assert len(await store.dead_letters.list()) == 100
            assert many.commands <= few.commands + 8, "the oldest goes for each that comes"

    asyncio.run(scenario())

"""The store on a Redis Cluster of three Valkeys: partitions over its primaries, slots that move, a primary that fails."""

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deploy.local.valkey import Valkey
from shared.errors import StoreUnavailable
from shared.messages import Job
from shared.settings import Settings, read
from shared.store import Store, budget, connect, keys, subscriptions
from shared.store.subscriptions import Delivery
from tests.cluster import Nodes
from tests.conftest import Background
from tests.shared.store.conftest import accepted, changed, decoded, finished

PARTITIONS = 3


@pytest.fixture
def settings(cluster: Nodes) -> Settings:
    environ = {"MESH_REDIS_URL": cluster.url, "MESH_PARTITIONS": str(PARTITIONS), "MESH_LEASE_S": "0.5"}
    return read(environ | {"MESH_JOB_DEADLINE_S": "60"})


class Workers:
    """A preprocess and an inference worker that end whatever comes, and count what they ended."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.ended: Counter[str] = Counter()

    async def __aenter__(self) -> "Workers":
        self._tasks = [asyncio.create_task(self._work(stage)) for stage in ("preprocess", "inference:small")]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError), result

    async def _work(self, stage: str) -> None:
        async with connect(self._settings) as store, store.consumer(stage, stage) as consumer:
            while True:
                for ticket in await consumer.take(4, 0.5):
                    with contextlib.suppress(StoreUnavailable):  # then it comes back after its lease
                        if stage == "preprocess":
                            await decoded(store, ticket)
                        elif await finished(store, ticket):
                            self.ended[ticket.id] += 1
                    consumer.done(ticket)


async def accepted_in(store: Store, partition: int) -> Job:
    while store.jobs.partition(job_id := store.jobs.new_id()) != partition:
        pass
    return await accepted(store, job_id=job_id)


async def surely_accepted(store: Store, *partitions: int) -> list[str]:
    """A job in each of these partitions, tried again as a client does."""
    ids: list[str] = []
    async with asyncio.timeout(30):
        for partition in partitions:
            while True:
                with contextlib.suppress(StoreUnavailable):
                    ids.append((await accepted_in(store, partition)).id)
                    break
                await asyncio.sleep(0.1)
    return ids


async def all_succeed(store: Store, ids: list[str]) -> None:
    async with asyncio.timeout(30):
        for job_id in ids:
            while True:
                with contextlib.suppress(StoreUnavailable):
                    if (await store.jobs.read(job_id)).status == "succeeded":
                        break
                await asyncio.sleep(0.01)


async def first(deliveries: AsyncIterator[Delivery], count: int) -> list[Delivery]:
    async with asyncio.timeout(20):
        return [await anext(deliveries) for _ in range(count)]


def test_jobs_of_all_partitions_end_once_and_are_told_to_all(settings: Settings, cluster: Nodes) -> None:
    async def scenario() -> None:
        async with (
            connect(settings) as store,
            Workers(settings) as workers,
            store.events as events,
            subscriptions.live(settings.redis_url) as live,
            subscriptions.durable(settings.redis_url) as alone,
            subscriptions.durable(settings.redis_url, group="g", after="0") as shared,
        ):
            ids: list[str] = []
            for partition in [0, 1, 2] * 4:
                job_id = store.jobs.new_id()
                while store.jobs.partition(job_id) != partition:
                    job_id = store.jobs.new_id()
                with events.expect(job_id) as waiter:
                    await accepted(store, job_id=job_id, reply_to=events.channel)
                    job = await waiter.wait(20)
                    assert job
                    assert job.status == "succeeded"
                ids.append(job_id)
            assert workers.ended == Counter(ids)
            assert {delivery.job.id for delivery in await first(live, len(ids))} == set(ids)
            assert {delivery.job.id for delivery in await first(shared, len(ids))} == set(ids)
            heard = await first(alone, len(ids))
            assert {delivery.job.id for delivery in heard} == set(ids)
            # Whoever comes again with the place that he had read to goes on behind it, in all streams.
            async with subscriptions.durable(settings.redis_url, after=heard[6].entry_id) as later:
                rest = {delivery.job.id for delivery in await first(later, len(ids) - 7)}
            assert rest == {delivery.job.id for delivery in heard[7:]}
            assert (await store.budget()).reserved_bytes == 0
            assert (await store.budget()).limit_bytes == int(256 * 1024**2 * 0.7) * 3
            assert (await store.depths(["small"]))["preprocess"].waiting == 0
        for partition in range(PARTITIONS):
            with cluster.client(cluster.primary_of(keys.live(partition))) as client:
                assert client.xlen(keys.results(partition, in_cluster=True)) == 4
                assert not list(client.scan_iter("mesh:stream:*"))

    asyncio.run(scenario())


def test_answers_of_several_primaries_come_in_order(settings: Settings) -> None:
    async def scenario() -> None:
        async with connect(settings) as store:
            run = store._connection.run
            names = [keys.deliveries(number % PARTITIONS, str(number)) for number in range(50)]
            assert await run(*(("SET", name, name, "PX", 60_000) for name in names)) == [b"OK"] * 50
            large = b"x" * 200_000
            answers = await run(
                ("PING",), ("SET", names[7], large, "PX", 60_000), *(("GET", name) for name in names), ("GET", names[7])
            )
            assert answers == [b"PONG", b"OK", *(large if name == names[7] else name.encode() for name in names), large]
            for server in store._connection._cluster.primaries:  # scripts that a server lost are loaded there again
                await server.send([("SCRIPT", "FLUSH")])
            await asyncio.gather(*(accepted_in(store, partition) for partition in range(PARTITIONS)))

    asyncio.run(scenario())


def test_a_slot_that_moves_while_jobs_run_loses_none(settings: Settings, cluster: Nodes) -> None:
    partition, home = 1, cluster.primary_of(keys.live(1))
    to = next(server for server in cluster.servers if server is not home)

    async def scenario() -> None:
        async with connect(settings) as store:
            ids = [(await accepted_in(store, partition)).id for _ in range(20)]
            async with Workers(settings) as workers:
                with cluster.moving(keys.live(partition), to):
                    # Keys here and there: this partition waits, whole, and new jobs go to the others.
                    with pytest.raises(StoreUnavailable, match="TRYAGAIN"):
                        await accepted_in(store, partition)
                    others = [(await accepted(store)).id for _ in range(6)]
                    await all_succeed(store, others)
                    assert not workers.ended - Counter(others)
                ids += others
                ids += await surely_accepted(store, *range(PARTITIONS), partition, partition)
                await all_succeed(store, ids)
            assert workers.ended == Counter(ids)
            assert cluster.primary_of(keys.live(partition)) is to

    try:
        asyncio.run(scenario())
    finally:
        if cluster.primary_of(keys.live(partition)) is not home:
            with cluster.moving(keys.live(partition), home):
                pass


def test_a_partition_is_added_while_jobs_run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "GROWTH_S", 0.2)
    two = changed(settings, partitions=2)

    async def scenario() -> None:
        # First whoever takes jobs of the new partition, then whoever gives it some. The old ones go on beside them.
        async with connect(two) as old, Workers(two) as old_workers, subscriptions.durable(settings.redis_url) as results:
            ids = [(await accepted(old)).id for _ in range(4)]
            async with Workers(settings) as new_workers, connect(settings) as new:
                ids += [(await accepted(old)).id for _ in range(4)]
                ids += [(await accepted_in(new, partition)).id for partition in (0, 1, 2, 2)]
                await all_succeed(old, ids)  # who knows two partitions reads of the third by the ID
                canceled = await accepted_in(new, 2)
                await old.endings.cancel(canceled.id)
            ids += [(await accepted(old)).id for _ in range(2)]
            await all_succeed(old, ids)
            told = {delivery.job.id for delivery in await first(results, len(ids) + 1)}
            assert told == {*ids, canceled.id}
            assert old_workers.ended + new_workers.ended - Counter([canceled.id]) == Counter(ids)

    asyncio.run(scenario())


def test_a_key_keeps_its_partition_when_one_is_added(settings: Settings) -> None:
    async def scenario() -> None:
        async with connect(settings) as three, connect(changed(settings, partitions=4)) as four:
            names = [f"key-{number}" for number in range(300)]
            before = [three.jobs.partition(three.jobs.new_id(name)) for name in names]
            after = [four.jobs.partition(four.jobs.new_id(name)) for name in names]
            assert set(before) == {0, 1, 2}
            assert all(now in (was, 3) for was, now in zip(before, after, strict=True))
            assert 40 < after.count(3) < 110

    asyncio.run(scenario())


def test_a_primary_fails_and_its_replica_takes_over(
    background: Background, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "REFRESH_S", 0.1)
    nodes = Nodes(tmp_path / "failing", background.run, replicas=1)
    nodes.start()
    failing = nodes.servers[0]
    lost = next(partition for partition in range(PARTITIONS) if nodes.primary_of(keys.live(partition)) is failing)
    # Any node leads into the cluster; this one is not about to die.
    settings = read({"MESH_REDIS_URL": nodes.servers[1].url, "MESH_PARTITIONS": "3", "MESH_LEASE_S": "0.5"})

    async def scenario() -> None:
        async with (
            connect(settings) as store,
            Workers(settings) as workers,
            subscriptions.durable(settings.redis_url, after="0") as results,
        ):
            ids = await surely_accepted(store, *range(PARTITIONS))
            await all_succeed(store, ids)
            await asyncio.to_thread(wait_for_replica, nodes, failing)
            os.kill(failing.pid or 0, signal.SIGKILL)
            # The others' jobs go on meanwhile, and new ones avoid it as soon as it was noticed.
            others = await surely_accepted(store, *(each for each in range(PARTITIONS) if each != lost))
            await all_succeed(store, others)
            with contextlib.suppress(StoreUnavailable):
                await store.jobs.read(ids[lost])
            if store._connection.is_away(keys.live(lost)):
                assert lost not in {store.jobs.partition(store.jobs.new_id()) for _ in range(50)}
            ids += others + await surely_accepted(store, lost)
            await all_succeed(store, ids)
            assert workers.ended == Counter(ids)
            assert {delivery.job.id for delivery in await first(results, len(ids))} == set(ids)

    try:
        asyncio.run(scenario())
    finally:
        nodes.stop()


def wait_for_replica(nodes: Nodes, primary: Valkey) -> None:
    with nodes.client(primary) as client:
        assert client.execute_command("WAIT", 1, 5000) == 1

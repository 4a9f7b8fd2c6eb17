"""Whoever waits is woken: by the process' own channel, by a job's channel, and after a lost connection."""

import asyncio

import msgspec
import pytest
from redis.asyncio import Redis

from shared.messages import Job
from shared.settings import Settings
from shared.store import Store, connect
from tests.shared.store.conftest import accepted, changed, decoded, finished


async def work_one(store: Store) -> None:
    async with store.consumer("preprocess", "p") as preprocess, store.consumer("inference:small", "i") as inference:
        (ticket,) = await preprocess.take(1)
        assert await decoded(store, ticket)
        preprocess.done(ticket)
        (ticket,) = await inference.take(1)
        assert await finished(store, ticket)
        inference.done(ticket)


def test_a_waiter_gets_the_finished_job_on_its_own_channel(settings: Settings) -> None:
    async def scenario() -> None:
        async with connect(settings) as store, store.events as events:
            job = await accepted(store, reply_to=events.channel)
            with events.expect(job.id) as waiter:
                worker = asyncio.create_task(work_one(store))
                ended = await waiter.wait(5)
                await worker
            assert ended is not None
            assert ended.status == "succeeded"
            with events.expect("nobody") as waiter:
                assert await waiter.wait(0.01) is None

    asyncio.run(scenario())


def test_a_watcher_sees_every_event_of_a_job(settings: Settings) -> None:
    async def scenario() -> None:
        async with connect(settings) as store, store.events as events:
            job = await accepted(store)
            async with events.watch(job.id) as waiter:
                worker = asyncio.create_task(work_one(store))
                async with asyncio.timeout(5):
                    seen = [event.status async for event in waiter]
                await worker
            assert seen[0] == "queued"
            assert seen[-1] == "succeeded"
            async with events.watch(job.id) as waiter:
                assert [event.status async for event in waiter] == ["succeeded"]

    asyncio.run(scenario())


def test_nobody_hears_of_work_that_is_over(settings: Settings) -> None:
    """A job is announced with the take after its own, and not if it was handed on by then: its end could come first."""

    async def scenario() -> None:
        async with connect(settings) as store, store.consumer("preprocess", "p") as preprocess:
            over, held = await accepted(store), await accepted(store)
            async with Redis.from_url(settings.redis_url) as client, client.pubsub() as ear:
                await ear.psubscribe("mesh:jobs:*")
                assert await ear.get_message(timeout=5)
                (ticket,) = await preprocess.take(1)
                assert ticket.id == over.id
                assert await decoded(store, ticket)
                preprocess.done(ticket)
                assert [taken.id for taken in await preprocess.take(1)] == [held.id]
                assert not await preprocess.take(1, 0.0)
                await store.endings.cancel(over.id)
                heard = [await ear.get_message(timeout=5) for _ in range(2)]
            jobs = [msgspec.msgpack.decode(message["data"]) for message in heard if message]
            assert [(job["id"], job["status"]) for job in jobs] == [(held.id, "processing"), (over.id, "canceled")]

    asyncio.run(scenario())


def test_a_cut_connection_loses_no_end(settings: Settings) -> None:
    async def scenario() -> None:
        async with connect(settings) as store, store.events as events:
            job = await accepted(store, reply_to=events.channel)
            with events.expect(job.id) as waiter:
                waiting = asyncio.create_task(waiter.wait(10))
                admin = Redis.from_url(settings.redis_url)
                await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                await admin.aclose()
                await work_one(store)
                ended = await waiting
            assert ended is not None
            assert ended.status == "succeeded"

    asyncio.run(scenario())


@pytest.mark.parametrize("encoding", ["msgpack", "json"])
def test_subscribers_and_the_results_stream_get_the_job(settings: Settings, encoding: str) -> None:
    decode = (msgspec.json if encoding == "json" else msgspec.msgpack).decode

    async def scenario() -> None:
        client = Redis.from_url(settings.redis_url)
        pubsub = client.pubsub(ignore_subscribe_messages=True)
        await pubsub.subscribe("mesh:results", "mesh:results:small")
        async with connect(changed(settings, event_encoding=encoding)) as store:
            job = await accepted(store)
            await work_one(store)
            heard = {}
            async with asyncio.timeout(5):
                while len(heard) < 2:
                    message = await pubsub.get_message(timeout=1)
                    if message:
                        heard[message["channel"]] = decode(message["data"], type=Job)
        assert {result.id for result in heard.values()} == {job.id}
        ((_, fields),) = await client.xrange("mesh:stream:results")
        assert fields[b"id"].decode() == job.id
        assert decode(fields[b"job"], type=Job).status == "succeeded"
        await pubsub.aclose()
        await client.aclose()

    asyncio.run(scenario())

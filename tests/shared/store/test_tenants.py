"""Tenants in the store: whose ID it is, what share and rate they have, and what others hear of them."""

import asyncio
import contextlib

import msgspec
import pytest
import redis

from shared.access import NOBODY, Tenant
from shared.errors import Overloaded, TooManyRequests, UnknownJob
from shared.settings import Settings
from shared.store import connect
from shared.store.jobs import RESULT_RESERVE_BYTES
from tests.shared.store.conftest import BODY, MODEL, accepted, changed, decoded, finished

ACME = Tenant(name="acme", byte_share=0.5)
BETA = Tenant(name="beta")
EACH = len(BODY) + MODEL.tensor_bytes + RESULT_RESERVE_BYTES


def test_an_id_shows_whose_it_is_and_to_strangers_nothing(settings: Settings) -> None:
    async def scenario() -> None:
        async with connect(settings) as store:
            ids = {tenant: store.jobs.new_id(None, tenant) for tenant in (ACME, BETA, NOBODY)}
            for owner, job_id in ids.items():
                store.jobs.check_owner(job_id, owner)
                for stranger in ids.keys() - {owner}:
                    with pytest.raises(UnknownJob):
                        store.jobs.check_owner(job_id, stranger)
            with pytest.raises(UnknownJob):
                store.jobs.check_owner(ids[ACME][:-1] + "a" * (ids[ACME][-1] != "a"), ACME)

    asyncio.run(scenario())


def test_a_share_is_the_tenants_own(settings: Settings) -> None:
    async def scenario() -> None:
        async with connect(changed(settings, byte_budget=4 * EACH)) as store:

            async def accept(tenant: Tenant) -> str:
                job_id = store.jobs.new_id(None, tenant)
                await accepted(store, job_id=job_id, tenant=tenant)
                return job_id

            first = [await accept(ACME) for _ in range(2)]
            with pytest.raises(TooManyRequests) as refusal:
                await accept(ACME)
            assert refusal.value.retry_after_s
            staged = store.jobs.new_id(None, ACME)
            with pytest.raises(TooManyRequests):
                await store.uploads.append(staged, b"x", ACME)
            await accept(BETA)
            await accept(BETA)
            with pytest.raises(Overloaded):
                await accept(BETA)
            await store.endings.cancel(first[0])
            await accept(ACME)

    asyncio.run(scenario())


def test_a_rate_is_the_tenants_own_and_says_when_to_come_back(settings: Settings) -> None:
    async def scenario() -> None:
        async with connect(settings) as store:
            slow = Tenant(name="slow", rate_per_s=0.5, burst=3)
            for _ in range(3):
                await store.rates.take(slow)
            with pytest.raises(TooManyRequests) as refusal:
                await store.rates.take(slow)
            assert refusal.value.retry_after_s == 2
            await store.rates.take(Tenant(name="other", rate_per_s=0.5, burst=1))
            quick = Tenant(name="quick", rate_per_s=100, burst=1)
            await store.rates.take(quick)
            async with asyncio.timeout(5):
                while True:
                    try:
                        await store.rates.take(quick)
                    except TooManyRequests:
                        await asyncio.sleep(0.001)  # the bucket fills by Redis' clock, which nothing can be awaited of
                    else:
                        break
            for ttl in await store._connection.run(("PTTL", "mesh:rate:slow"), ("PTTL", "mesh:rate:quick")):
                assert 0 < ttl < 10_000

    asyncio.run(scenario())


def test_a_tenants_events_are_told_on_its_own_channels(settings: Settings, redis_url: str) -> None:
    async def scenario() -> None:
        async with (
            connect(settings) as store,
            store.consumer("preprocess", "p") as preprocess,
            store.consumer("inference:small", "i") as inference,
        ):
            for tenant in (ACME, BETA):
                await accepted(store, job_id=store.jobs.new_id(None, tenant), tenant=tenant)
            tickets = await preprocess.take(2)
            assert not await preprocess.take(1, 0.0)  # which tells of those that were taken before
            for ticket in tickets:
                assert await decoded(store, ticket)
                preprocess.done(ticket)
            for ticket in await inference.take(2):
                assert await finished(store, ticket)
                inference.done(ticket)

    with contextlib.closing(redis.Redis.from_url(redis_url)) as client, contextlib.closing(client.pubsub()) as pubsub:
        pubsub.psubscribe("mesh:tenant:acme:*")
        assert pubsub.get_message(timeout=5)["type"] == "psubscribe"
        asyncio.run(scenario())
        heard = []
        while message := pubsub.get_message(timeout=0.2):
            heard.append((message["channel"].decode(), msgspec.msgpack.decode(message["data"])))
        assert len({job["id"] for _, job in heard}) == 1, "only acme's own job"
        job_id = heard[0][1]["id"]
        assert [job["status"] for channel, job in heard if channel.endswith(job_id)] == ["queued", "processing", "succeeded"]
        assert {channel for channel, job in heard if job["status"] == "succeeded"} == {
            "mesh:tenant:acme:results",
            "mesh:tenant:acme:results:small",
            f"mesh:tenant:acme:jobs:{job_id}",
        }

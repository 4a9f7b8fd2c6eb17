"""Results for subscribers: live, from an entry on, and shared in a group, on a real Valkey."""

import asyncio
import contextlib

import pytest
import redis

from shared.errors import InvalidParameter, StoreUnavailable
from shared.messages import Job, job_to_json, job_to_msgpack
from shared.store import keys, subscriptions

LIMIT_S = 10


def job(name: str, model: str = "small") -> Job:
    return Job(id=name, status="succeeded", model=model, track="B", created_at="2026-01-01T12:00:00.000Z")


class Mesh:
    """Finishes jobs as `end.lua` does."""

    def __init__(self, url: str) -> None:
        self.redis = redis.Redis.from_url(url)

    def finish(self, *names: str, model: str = "small", encode=job_to_msgpack) -> None:
        for name in names:
            payload = encode(job(name, model))
            self.redis.xadd(keys.RESULTS_STREAM, {"id": name, "job": payload})
            self.redis.publish(keys.RESULTS_CHANNEL, payload)
            self.redis.publish(keys.results_of(model), payload)


@pytest.fixture
def finishing(redis_url: str):
    mesh = Mesh(redis_url)
    with contextlib.closing(mesh.redis):
        yield mesh


async def some(deliveries, count: int) -> list[str]:
    async with asyncio.timeout(LIMIT_S):
        return [(await anext(deliveries)).job.id for _ in range(count)]


def test_live_hears_one_model_or_all(redis_url: str, finishing: Mesh) -> None:
    async def main() -> None:
        async with subscriptions.live(redis_url) as every, subscriptions.live(redis_url, "other") as other:
            finishing.finish("one")
            finishing.finish("two", model="other", encode=job_to_json)
            assert await some(every, 2) == ["one", "two"]
            assert await some(other, 1) == ["two"]

    asyncio.run(main())


def test_live_comes_back_after_its_connection_is_cut(redis_url: str, finishing: Mesh) -> None:
    async def main() -> None:
        async with subscriptions.live(redis_url) as heard:
            finishing.finish("one")
            assert await some(heard, 1) == ["one"]
            waiting = asyncio.create_task(some(heard, 1))
            finishing.redis.client_kill_filter(_type="pubsub")
            while not finishing.redis.pubsub_numsub(keys.RESULTS_CHANNEL)[0][1]:  # noqa: ASYNC110 - Redis tells nobody
                await asyncio.sleep(0.01)
            finishing.finish("two")
            assert await waiting == ["two"]

    asyncio.run(main())


def test_what_cannot_be_read_is_passed_over(redis_url: str, finishing: Mesh) -> None:
    async def main() -> None:
        async with subscriptions.live(redis_url) as heard:
            finishing.redis.publish(keys.RESULTS_CHANNEL, b"\xc1")
            finishing.finish("one")
            assert await some(heard, 1) == ["one"]

    asyncio.run(main())


def test_a_reader_goes_on_behind_an_entry(redis_url: str, finishing: Mesh) -> None:
    async def main() -> None:
        finishing.finish("one", "two", "three")
        async with subscriptions.durable(redis_url, after="0") as entries:
            async with asyncio.timeout(LIMIT_S):
                first = await anext(entries)
            assert first.job.id == "one"
        async with subscriptions.durable(redis_url, after=first.entry_id) as entries:
            assert await some(entries, 2) == ["two", "three"]
        async with subscriptions.durable(redis_url) as entries:
            finishing.finish("four")
            assert await some(entries, 1) == ["four"]

    asyncio.run(main())


def test_from_now_on_works_before_the_first_result(redis_url: str, finishing: Mesh) -> None:
    async def main() -> None:
        async with subscriptions.durable(redis_url) as entries:
            finishing.finish("one")
            assert await some(entries, 1) == ["one"]

    asyncio.run(main())


def test_a_group_shares_and_remembers(redis_url: str, finishing: Mesh) -> None:
    async def main() -> None:
        finishing.finish("before")
        async with subscriptions.durable(redis_url, group="readers", consumer="a") as a:
            finishing.finish("one", "two", "three")
            assert await some(a, 2) == ["one", "two"]
        # `two` was given, but nobody came back to say that it is dealt with; nor had `three` been given.
        async with subscriptions.durable(redis_url, group="readers", consumer="a") as a:
            assert await some(a, 2) == ["two", "three"]
            more = asyncio.create_task(some(a, 1))
            finishing.finish("four")
            assert await more == ["four"]

    asyncio.run(main())


def test_what_a_dead_consumer_held_goes_to_another(redis_url: str, finishing: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "CLAIM_AFTER_S", 0.1)
    monkeypatch.setattr(subscriptions, "BLOCK_S", 0.05)

    async def main() -> None:
        async with subscriptions.durable(redis_url, group="readers", consumer="dead") as dead:
            finishing.finish("one")
            assert await some(dead, 1) == ["one"]
        async with subscriptions.durable(redis_url, group="readers", consumer="alive") as alive:
            assert await some(alive, 1) == ["one"]

    asyncio.run(main())


def test_a_group_outlives_an_emptied_redis(redis_url: str, finishing: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "BLOCK_S", 0.05)

    async def main() -> None:
        async with subscriptions.durable(redis_url, group="readers", consumer="a") as a:
            finishing.finish("one")
            assert await some(a, 1) == ["one"]
            finishing.redis.flushall()
            finishing.finish("two")
            assert await some(a, 1) == ["two"]

    asyncio.run(main())


def test_a_capped_entry_does_not_stop_a_group(redis_url: str, finishing: Mesh) -> None:
    async def main() -> None:
        async with subscriptions.durable(redis_url, group="readers", consumer="a") as a:
            finishing.finish("one")
            assert await some(a, 1) == ["one"]
        finishing.redis.xtrim(keys.RESULTS_STREAM, maxlen=0, approximate=False)
        async with subscriptions.durable(redis_url, group="readers", consumer="a") as a:
            finishing.finish("two")
            assert await some(a, 1) == ["two"]

    asyncio.run(main())


@pytest.mark.parametrize("group", ["", "readers"])
def test_a_wrong_position_is_named(redis_url: str, group: str) -> None:
    async def main() -> None:
        async with subscriptions.durable(redis_url, group=group, after="yesterday") as entries:
            await some(entries, 1)

    with pytest.raises(InvalidParameter, match="yesterday"):
        asyncio.run(main())


@pytest.mark.parametrize("subscribe", [subscriptions.live, subscriptions.durable])
def test_no_redis_there(subscribe) -> None:
    async def main(url: str) -> None:
        async with subscribe(url):
            pass

    with pytest.raises(StoreUnavailable):
        asyncio.run(main("redis://127.0.0.1:1"))
    with pytest.raises(InvalidParameter, match="not the URL"):
        asyncio.run(main("http://127.0.0.1"))

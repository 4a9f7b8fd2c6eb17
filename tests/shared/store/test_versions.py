"""Old and new processes side by side on one Redis: what a peer of another version writes neither breaks nor is broken."""

import asyncio

import msgspec
import pytest

from shared.heartbeat import beat_forever
from shared.messages import MESSAGE_VERSION, Drawing, JobOptions
from shared.settings import Settings
from shared.store import Store, claims, connect, keys
from tests.shared.store.conftest import MODEL, accepted, changed, decoded, finished


async def run(store: Store, *command: object) -> object:
    return await store._connection.run_one(*command)  # pyright: ignore[reportPrivateUsage, reportArgumentType]


async def from_newer(store: Store, job_id: str) -> None:
    """Make a job look as if a newer gateway had accepted it."""
    future = msgspec.msgpack.encode({"confidence": 0.5, "mood": "sunny"})
    await run(store, "HSET", keys.job(0, job_id), "v", MESSAGE_VERSION + 1, "options", future, "mood", "sunny")


def test_a_job_of_a_newer_version_is_left_to_a_newer_worker(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with connect(settings) as store, store.consumer("preprocess", "p") as worker:
            newer, known = await accepted(store), await accepted(store)
            await from_newer(store, newer.id)
            (ticket,) = await worker.take(1)
            assert ticket.id == known.id  # the one behind it
            assert await worker.take(4, block_s=0.1) == []
            left = await store.jobs.read(newer.id)
            assert (left.status, left.stage, left.attempts) == ("queued", None, 0)
            depth = (await store.depths([]))["preprocess"]
            assert (depth.waiting, depth.in_progress) == (1, 1)  # back in the queue, and nobody's
            monkeypatch.setattr(claims, "MESSAGE_VERSION", MESSAGE_VERSION + 1)
            (ticket,) = await worker.take(4)
            assert (ticket.id, ticket.attempts, ticket.fence, ticket.options.confidence) == (newer.id, 1, 1, 0.5)
            assert await decoded(store, ticket)
            assert await run(store, "HGET", keys.job(0, newer.id), "v") == str(MESSAGE_VERSION + 1).encode()

    asyncio.run(scenario())


def test_one_that_a_dead_newer_worker_held_is_left_as_well(settings: Settings) -> None:
    async def scenario() -> None:
        async with connect(settings) as store, store.consumer("preprocess", "heir") as heir:
            dead = store.consumer("preprocess", "dead")  # never entered: nobody renews its leases
            job = await accepted(store)
            await dead.take(1)
            await from_newer(store, job.id)
            queue = keys.queue(0, "preprocess")
            async with asyncio.timeout(5):
                while await run(store, "XPENDING", queue, keys.GROUP, "-", "+", 1, "dead"):
                    assert await heir.take(1, block_s=0.05) == []
            assert (await store.jobs.read(job.id)).attempts == 1  # that of the dead one
            assert await run(store, "XLEN", queue) == 1

    asyncio.run(scenario())


def test_what_is_added_within_a_version_is_ignored(settings: Settings) -> None:
    async def scenario() -> None:
        async with (
            connect(settings) as store,
            store.consumer("preprocess", "p") as preprocess,
            store.consumer("inference:small", "i") as inference,
        ):
            job, key = await accepted(store), keys.job(0, (await accepted(store)).id)
            job_id = key.rpartition(":")[2]
            future = msgspec.msgpack.encode({"confidence": 0.5, "mood": "sunny"})
            await run(store, "HSET", key, "options", future, "mood", "sunny")
            await run(store, "HDEL", key, "v", "served_as")  # nor is a field missed that an older gateway did not write
            queue = keys.queue(0, "preprocess")
            await run(store, "XDEL", queue, await run(store, "HGET", key, "entry"))
            entry = await run(store, "XADD", queue, "*", "mood", "sunny", "id", job_id)
            await run(store, "HSET", key, "entry", entry)
            tickets = await preprocess.take(4)
            assert [ticket.id for ticket in tickets] == [job.id, job_id]
            assert (tickets[1].options.confidence, tickets[1].served_as) == (0.5, "small")
            for ticket in tickets:
                assert await decoded(store, ticket)
            image = {"width": 1, "height": 1, "format": "png", "mood": "sunny"}
            await run(store, "HSET", key, "image", msgspec.msgpack.encode(image))
            await run(store, "HSET", key, "placement", msgspec.msgpack.encode([1.0, 1.0, 0.0, 0.0, "sunny"]))
            for ticket in await inference.take(4):
                assert await finished(store, ticket)
            assert (await store.jobs.read(job_id)).status == "succeeded"

    asyncio.run(scenario())


def test_what_cannot_be_read_at_all_is_nobodys_failure(settings: Settings) -> None:
    async def scenario() -> None:
        async with connect(settings) as store, store.consumer("preprocess", "p") as worker:
            broken, good = await accepted(store), await accepted(store)
            await run(store, "HSET", keys.job(0, broken.id), "options", msgspec.msgpack.encode({"confidence": "high"}))
            (ticket,) = await worker.take(4)
            assert ticket.id == good.id
            assert (await store.jobs.read(broken.id)).status == "processing"  # until its deadline, or another worker

    asyncio.run(scenario())


def test_a_later_version_of_a_model_has_a_queue_of_its_own(settings: Settings) -> None:
    async def scenario() -> None:
        second = msgspec.structs.replace(MODEL, version=2)
        async with (
            connect(settings) as store,
            store.consumer("preprocess", "p") as preprocess,
            store.consumer("inference:small", "i") as first_loop,
            store.consumer("inference:small@2", "i") as second_loop,
        ):
            job = await accepted(store, model=second, options=JobOptions())
            (ticket,) = await preprocess.take(1)
            assert (ticket.model, ticket.served_as) == ("small", "small@2")
            assert await decoded(store, ticket)
            assert await first_loop.take(1, block_s=0.01) == []
            (ticket,) = await second_loop.take(1)
            assert await store.claims.release(ticket)
            (ticket,) = await second_loop.take(1)
            assert await finished(store, ticket)
            ended = await store.jobs.read(job.id)
            assert (ended.status, ended.model) == ("succeeded", "small")

    asyncio.run(scenario())


def test_a_heartbeat_of_a_kind_that_is_not_known_here_hides_no_other(settings: Settings) -> None:
    async def scenario() -> None:
        async with connect(changed(settings, heartbeat_s=0.05)) as store:
            future = {"kind": "oracle", "name": "o", "mood": "sunny"}
            await run(store, "HSET", keys.WORKERS, "oracle:o", msgspec.msgpack.encode(future))
            beating = asyncio.create_task(beat_forever(store, 0.05, "preprocess", "p", dict))
            async with asyncio.timeout(5):
                while not (beats := await store.heartbeats.live()):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert [(beat.kind, beat.message_version) for beat in beats] == [("preprocess", MESSAGE_VERSION)]
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    asyncio.run(scenario())


def test_a_stage_that_is_not_known_here_does_not_hide_the_job(settings: Settings) -> None:
    async def scenario() -> None:
        async with connect(settings) as store, store.consumer("preprocess", "p") as worker:
            job = await accepted(store)
            await worker.take(1)
            await run(store, "HSET", keys.job(0, job.id), "stage", "dreaming")
            seen = await store.jobs.read(job.id)
            assert (seen.status, seen.stage) == ("processing", None)

    asyncio.run(scenario())


def test_a_request_to_draw_in_a_way_that_is_not_known_here_ends_no_worker(settings: Settings) -> None:
    async def scenario() -> None:
        async with connect(settings) as store:
            job = await accepted(store)
            await run(store, "RPUSH", keys.renders(0), msgspec.msgpack.encode([job.id, ["hologram", 640]]))
            assert await store.renders.ask(job.id, Drawing()) is None
            assert await store.renders.take(0.1) is None
            taken = await store.renders.take(0.1)
            assert taken is not None
            assert (taken.job_id, taken.drawing) == (job.id, Drawing())

    asyncio.run(scenario())

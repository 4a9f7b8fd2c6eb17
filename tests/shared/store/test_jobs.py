"""A job's way through its states, and what keeps its end the only one."""

import asyncio

import pytest

from shared.errors import (
    CorruptImage,
    ExpiredJob,
    IdempotencyMismatch,
    Overloaded,
    UnknownJob,
    UploadLost,
)
from shared.messages import JobOptions
from shared.settings import Settings
from shared.store import Store, connect
from tests.shared.store.conftest import BODY, MODEL, accepted, changed, decoded, finished


async def keys_left(store: Store) -> set[str]:
    names = await store._connection.run_one("KEYS", "*")  # pyright: ignore[reportPrivateUsage]
    return {name.decode() for name in names} - {"mesh:id-secret", "mesh:stream:results", "mesh:workers"}


def test_a_job_goes_through_every_state(settings: Settings) -> None:
    async def scenario() -> None:
        async with (
            connect(settings) as store,
            store.consumer("preprocess", "p") as preprocess,
            store.consumer("inference:small", "i") as inference,
        ):
            job = await accepted(store, options=JobOptions(confidence=0.6))
            assert (await store.jobs.read(job.id)).status == "queued"
            (ticket,) = await preprocess.take(4)
            assert ticket.options.confidence == 0.6
            assert await store.uploads.get(ticket) == BODY
            seen = await store.jobs.read(job.id)
            assert (seen.status, seen.stage, seen.attempts) == ("processing", "decoding", 1)
            assert await decoded(store, ticket)
            preprocess.done(ticket)
            assert (await store.jobs.read(job.id)).stage == "decoded"
            assert await store.uploads.get(ticket) == BODY  # kept to its end, for a replay if we fail
            (ticket,) = await inference.take(4)
            assert (await store.tensors.get_many([ticket])) == [b"\x72" * MODEL.tensor_bytes]
            assert await finished(store, ticket)
            inference.done(ticket)
            with pytest.raises(UploadLost):
                await store.uploads.get(ticket)
            ended = await store.jobs.read(job.id)
            assert (ended.status, ended.stage, ended.attempts, ended.batch_size) == ("succeeded", None, 1, 1)
            assert ended.created_at == job.created_at
            assert {"upload", "preprocess", "inference", "total"} <= set(ended.timings_ms)
            assert (await store.budget()).reserved_bytes == 0
            # Only the job and the two (empty) queues are left.
            assert await keys_left(store) == {
                f"{{mesh:0}}:job:{job.id}", "{mesh:0}:queue:preprocess", "{mesh:0}:queue:inference:small",
            }  # fmt: skip
            depths = await store.depths(["small"])
            assert all(depth.waiting == depth.in_progress == 0 for depth in depths.values())

    asyncio.run(scenario())


def test_a_job_is_handed_on_when_its_worker_dies_and_the_late_result_is_dropped(settings: Settings) -> None:
    async def scenario() -> None:
        async with connect(settings) as store, store.consumer("preprocess", "heir") as heir:
            dead = store.consumer("preprocess", "dead")  # never entered: nobody renews its leases
            await accepted(store)
            (stale,) = await dead.take(1)
            fresh = []
            async with asyncio.timeout(5):
                while not fresh:
                    fresh = await heir.take(1, block_s=0.05)
            assert fresh[0].attempts == 2
            assert not await decoded(store, stale)
            assert await decoded(store, fresh[0])
            assert not await store.endings.fail(stale, CorruptImage())

    asyncio.run(scenario())


def test_a_lease_that_is_renewed_is_not_taken(settings: Settings) -> None:
    async def scenario() -> None:
        async with (
            connect(settings) as store,
            store.consumer("preprocess", "a") as holder,
            store.consumer("preprocess", "b") as other,
        ):
            await accepted(store)
            (ticket,) = await holder.take(1)
            for _ in range(12):  # three leases long
                assert await other.take(1, block_s=0.05) == []
            assert await decoded(store, ticket)

    asyncio.run(scenario())


@pytest.mark.parametrize("stage", ["queued", "decoding", "inferring"])
def test_cancel_is_for_good(settings: Settings, stage: str) -> None:
    async def scenario() -> None:
        async with (
            connect(settings) as store,
            store.consumer("preprocess", "p") as preprocess,
            store.consumer("inference:small", "i") as inference,
        ):
            job = await accepted(store)
            ticket = None
            if stage != "queued":
                (ticket,) = await preprocess.take(1)
            if stage == "inferring" and ticket:
                assert await decoded(store, ticket)
                (ticket,) = await inference.take(1)
            assert (await store.endings.cancel(job.id)).status == "canceled"
            assert (await store.endings.cancel(job.id)).status == "canceled"
            if stage == "queued":
                assert await preprocess.take(1, block_s=0.05) == []
            elif stage == "decoding" and ticket:
                assert not await decoded(store, ticket)
            elif ticket:
                assert not await finished(store, ticket)
            assert (await store.jobs.read(job.id)).status == "canceled"
            assert not any("tensor" in key or "upload" in key for key in await keys_left(store))
            assert (await store.budget()).reserved_bytes == 0

    asyncio.run(scenario())


def test_the_same_key_gives_the_same_job(settings: Settings) -> None:
    async def scenario() -> None:
        async with connect(settings) as store:
            first = await accepted(store, idempotency_key="k", request_hash="h")
            again = await accepted(store, idempotency_key="k", request_hash="h")
            assert again.id == first.id
            with pytest.raises(IdempotencyMismatch):
                await accepted(store, idempotency_key="k", request_hash="other")
            assert (await store.depths([]))["preprocess"].waiting == 1
            assert sum("upload" in key for key in await keys_left(store)) == 1

    asyncio.run(scenario())


def test_a_full_budget_refuses_before_it_accepts(settings: Settings) -> None:
    async def scenario() -> None:
        async with connect(changed(settings, byte_budget=500_000)) as store:
            await accepted(store)
            before = await store.budget()
            with pytest.raises(Overloaded) as refusal:
                await accepted(store)
            assert refusal.value.retry_after_s
            assert await store.budget() == before
            assert sum("upload" in key for key in await keys_left(store)) == 1

    asyncio.run(scenario())


def test_a_staged_upload_is_accepted_or_given_back(settings: Settings) -> None:
    async def scenario() -> None:
        async with connect(settings) as store, store.consumer("preprocess", "p") as preprocess:
            job_id = store.jobs.new_id()
            for chunk in (b"ab", b"cd", b"ef"):
                await store.uploads.append(job_id, chunk)
            assert (await store.budget()).reserved_bytes == 6
            await store.jobs.accept(job_id, model=MODEL, options=JobOptions(), body=None, upload_bytes=6)
            (ticket,) = await preprocess.take(1)
            assert await store.uploads.get(ticket) == b"abcdef"
            await store.uploads.discard(job_id)  # too late: it is a job now
            assert await store.uploads.get(ticket) == b"abcdef"

            dropped = store.jobs.new_id()
            reserved = (await store.budget()).reserved_bytes
            await store.uploads.append(dropped, b"gone")
            await store.uploads.discard(dropped)
            assert (await store.budget()).reserved_bytes == reserved
            with pytest.raises(Overloaded):
                await store.jobs.accept(dropped, model=MODEL, options=JobOptions(), body=None, upload_bytes=4)
            assert (await store.budget()).reserved_bytes == reserved

    asyncio.run(scenario())


def test_an_overdue_job_expires_and_leaves_nothing_reserved(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr("shared.store.endings.SWEEP_GRACE_MS", 0)
        async with connect(settings) as store:
            job = await accepted(store, deadline_s=0.01)
            async with asyncio.timeout(5):
                while not await store.endings.sweep(0):
                    pass
            ended = await store.jobs.read(job.id)
            assert ended.status == "expired"
            assert ended.error is not None
            assert ended.error.code == "deadline-passed"
            assert (await store.budget()).reserved_bytes == 0

    asyncio.run(scenario())


def test_ids_tell_unknown_from_expired(settings: Settings) -> None:
    async def scenario() -> None:
        async with connect(settings) as store:
            with pytest.raises(ExpiredJob):
                await store.jobs.read(store.jobs.new_id())
            real = store.jobs.new_id()
            for guess in ("", "x", "a" * 36, real.upper(), real[:-1] + ("a" if real[-1] != "a" else "b"), "ü" * 36):
                with pytest.raises(UnknownJob):
                    await store.jobs.read(guess)

    asyncio.run(scenario())


def test_crashes_are_counted_and_a_released_job_comes_back(settings: Settings) -> None:
    async def scenario() -> None:
        async with connect(settings) as store, store.consumer("preprocess", "p") as preprocess:
            await accepted(store)
            (ticket,) = await preprocess.take(1)
            assert await store.claims.crashed(ticket) == 1
            assert await store.claims.release(ticket)
            preprocess.done(ticket)
            (ticket,) = await preprocess.take(1)
            assert (ticket.attempts, ticket.crashes) == (2, 1)
            assert await store.claims.crashed(ticket) == 2

    asyncio.run(scenario())


def test_redis_emptied_under_a_worker_does_not_stop_it(settings: Settings) -> None:
    async def scenario() -> None:
        async with connect(settings) as store, store.consumer("preprocess", "p") as preprocess:
            await preprocess.take(1, block_s=0.01)
            await store._connection.run(("FLUSHALL",), ("SCRIPT", "FLUSH"))  # pyright: ignore[reportPrivateUsage]
            await accepted(store)
            taken = []
            async with asyncio.timeout(5):
                while not taken:
                    taken = await preprocess.take(1, block_s=0.05)

    asyncio.run(scenario())

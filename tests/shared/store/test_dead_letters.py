"""Dead letters: what failed by our fault is kept with its picture and can be done again, as a new job."""

import asyncio

import pytest

from shared.errors import CorruptImage, ExpiredJob, InferenceUnavailable, Internal, MeshError, UploadLost
from shared.messages import JobOptions
from shared.models import load
from shared.settings import Settings
from shared.store import Store, connect
from tests.shared.store.conftest import BODY, accepted, changed

REGISTRY = load()


async def failed(store: Store, error: MeshError, body: bytes = BODY) -> str:
    job = await accepted(store, options=JobOptions(confidence=0.7), body=body, upload_bytes=len(body))
    async with store.consumer("preprocess", "p") as preprocess:
        (ticket,) = await preprocess.take(1)
        assert await store.endings.fail(ticket, error)
        preprocess.done(ticket)
    return job.id


def test_only_what_is_our_fault_is_kept(settings: Settings) -> None:
    async def scenario() -> None:
        async with connect(settings) as store:
            picture = await failed(store, CorruptImage())
            ours = await failed(store, InferenceUnavailable("no Triton"))
            (letter,) = await store.dead_letters.list()
            assert letter.id == ours
            assert letter.error is not None
            assert letter.error.code == "inference-unavailable"
            with pytest.raises(UploadLost):
                await store.dead_letters.replay(picture, REGISTRY)
            with pytest.raises(ExpiredJob):
                await store.dead_letters.replay(store.jobs.new_id(), REGISTRY)

    asyncio.run(scenario())


def test_a_replay_is_a_new_job_with_the_same_picture_and_options_and_happens_once(settings: Settings) -> None:
    async def scenario() -> None:
        async with connect(settings) as store, store.consumer("preprocess", "p") as preprocess:
            dead = await failed(store, Internal("a fault"))
            again = await store.dead_letters.replay(dead, REGISTRY)
            assert again.id != dead
            assert (await store.jobs.read(dead)).status == "failed"
            assert await store.dead_letters.list() == []
            (ticket,) = await preprocess.take(2)
            assert ticket.id == again.id
            assert ticket.options == JobOptions(confidence=0.7)
            assert await store.uploads.get(ticket) == BODY
            with pytest.raises(UploadLost):
                await store.dead_letters.replay(dead, REGISTRY)

    asyncio.run(scenario())


def test_number_bytes_and_time_of_dead_letters_are_bounded(settings: Settings) -> None:
    async def scenario() -> None:
        narrow = changed(settings, byte_budget=16 * 3_000_000, dead_letters=3, result_ttl_s=1, dead_letter_ttl_s=2)
        async with connect(narrow) as store:
            ids = [await failed(store, Internal("no"), body=bytes(1_000_000)) for _ in range(5)]
            assert [letter.id for letter in await store.dead_letters.list()] == ids[:1:-1]
            large = await failed(store, Internal("no"), body=bytes(2_500_000))
            kept = await store._connection.run(*(("EXISTS", f"{{mesh:0}}:upload:{job_id}") for job_id in [*ids, large]))
            assert kept == [0, 0, 0, 0, 0, 1], "the newest picture alone fills a sixteenth of the budget"
            for key in ("{mesh:0}:dead", f"{{mesh:0}}:upload:{large}", f"{{mesh:0}}:job:{large}"):
                assert 0 < await store._connection.run_one("PTTL", key) <= 2000

    asyncio.run(scenario())

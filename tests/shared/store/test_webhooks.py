"""The outbox: written in the step that ends a job, and kept until its taker is done with it."""

import asyncio

import pytest

from shared.messages import Delivery, JobOptions, job_from_msgpack
from shared.settings import Settings
from shared.store import connect, webhooks
from tests.shared.store.conftest import accepted, decoded, finished

URL = "https://example.com/hook"


async def _ended(store, **options: object) -> str:
    job = await accepted(store, options=JobOptions(**options))
    async with store.consumer("preprocess", "one") as consumer:
        (ticket,) = await consumer.take(1, 1)
        assert await decoded(store, ticket)
    async with store.consumer("inference:small", "two") as consumer:
        (ticket,) = await consumer.take(1, 1)
        assert await finished(store, ticket)
    return job.id


def run(work) -> None:
    asyncio.run(work)


def test_an_end_is_due_until_it_is_done(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "CLAIM_AFTER_S", 0.0)

    async def main() -> None:
        async with connect(settings) as store:
            await _ended(store)  # nobody is to be told of this one
            job_id = await _ended(store, callback_url=URL)
            (due,) = await store.webhooks.take("first", 10, 0.1)
            assert (due.kind, due.subject_id, due.url) == ("job", job_id, URL)
            assert job_from_msgpack(due.result) == await store.jobs.read(job_id)
            (again,) = await store.webhooks.take("second", 10, 0.1)  # the first has died
            assert again == due
            await store.webhooks.done(again)
            assert await store.webhooks.take("third", 10, 0.1) == []

    run(main())


def test_the_log_keeps_the_last_tries(settings: Settings) -> None:
    async def main() -> None:
        async with connect(settings) as store:
            job = await accepted(store)
            assert await store.webhooks.deliveries(job.id) == []
            for attempt in range(webhooks.LOG_LENGTH + 3):
                tried = Delivery(attempt=attempt, at="", url=URL, delivered=False, took_ms=1.0)
                await store.webhooks.log(job.id, tried)
            kept = [one.attempt for one in await store.webhooks.deliveries(job.id)]
            assert kept == list(range(3, webhooks.LOG_LENGTH + 3))

    run(main())

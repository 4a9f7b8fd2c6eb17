"""Uploads kept with their results: counted against the budget, and gone with them."""

import asyncio

from shared.messages import JobOptions
from shared.settings import Settings
from shared.store import connect
from tests.shared.store.conftest import BODY, accepted, changed, decoded, finished


def test_a_kept_upload_is_reserved_until_it_goes(settings: Settings) -> None:
    async def main() -> None:
        async with connect(changed(settings, result_ttl_s=0.3)) as store:
            job = await accepted(store, options=JobOptions(keep_upload=True))
            async with store.consumer("preprocess", "one") as consumer:
                (ticket,) = await consumer.take(1, 1)
                assert await decoded(store, ticket)
            async with store.consumer("inference:small", "two") as consumer:
                (ticket,) = await consumer.take(1, 1)
                assert await finished(store, ticket)
            assert await store.uploads.get(ticket) == BODY
            await store.renders.check(job.id)
            assert (await store.budget()).reserved_bytes > len(BODY)
            async with asyncio.timeout(5):
                while (await store.budget()).reserved_bytes:
                    await asyncio.sleep(0.02)
                    await store.endings.sweep(0)

    asyncio.run(main())


def test_one_that_is_not_kept_is_given_back_at_once(settings: Settings) -> None:
    async def main() -> None:
        async with connect(settings) as store:
            await accepted(store)
            async with store.consumer("preprocess", "one") as consumer:
                (ticket,) = await consumer.take(1, 1)
                assert await decoded(store, ticket)
            async with store.consumer("inference:small", "two") as consumer:
                (ticket,) = await consumer.take(1, 1)
                assert await finished(store, ticket)
            assert (await store.budget()).reserved_bytes == 0

    asyncio.run(main())

"""Admission: how the rate is measured, what limits the queue, and what Retry-After says."""

import asyncio

import pytest

from shared.errors import Overloaded
from shared.settings import Settings
from shared.store import Store, connect
from shared.store.admission import FEW, LEAST_OPEN, MOST_S, SHUT_S
from tests.shared.store.conftest import accepted, changed, decoded, finished


def test_the_rate_is_learned_from_a_busy_mesh_only(settings: Settings) -> None:
    admission = Store(settings).admission
    admission.observe(0, 2, 1.0)
    admission.observe(3, 2, 1.0)
    assert admission.rate_per_s == 0, "three jobs in a second, for no more were sent"
    admission.observe(3, FEW, 1.0)
    admission.observe(53, FEW, 1.0)
    assert admission.rate_per_s == 50
    admission.observe(54, 1, 1.0)
    assert admission.rate_per_s == 50, "idle is not slow"
    admission.observe(154, 1, 1.0)
    assert admission.rate_per_s == 100, "faster than was thought"
    admission.observe(154, FEW, 60.0)
    admission.observe(0, FEW, 1.0)
    assert admission.rate_per_s == 100, "a long pause or an emptied Redis teach nothing"


def test_retry_after_is_a_place_in_the_line(settings: Settings) -> None:
    admission = Store(settings).admission
    assert admission.retry_after_s(0) == 1, "nothing is known yet"
    admission.rate_per_s = 10.0
    told = [admission.retry_after_s(0) for _ in range(100)]
    assert told == sorted(told)
    assert 9 <= told[-1] <= 11, "a hundred before it, ten a second"
    assert admission.retry_after_s(10_000) == MOST_S


def test_the_queue_is_no_longer_than_its_time(settings: Settings) -> None:
    async def scenario() -> None:
        async with (
            connect(changed(settings, max_queue_s=1.0)) as store,
            store.consumer("preprocess", "p") as preprocess,
            store.consumer("inference:small", "i") as inference,
        ):
            store.admission.rate_per_s = 10.0
            ids = [(await accepted(store)).id for _ in range(LEAST_OPEN)]
            with pytest.raises(Overloaded) as refusal:
                await accepted(store)
            assert "more work" in refusal.value.detail
            assert refusal.value.retry_after_s == 1
            with pytest.raises(Overloaded):
                store.admission.check()
            (ticket,) = await preprocess.take(1)
            assert await decoded(store, ticket)
            preprocess.done(ticket)
            (ticket,) = await inference.take(1)
            assert await finished(store, ticket)
            inference.done(ticket)
            await asyncio.sleep(SHUT_S)  # the door opens by the clock
            store.admission.check()
            assert (await accepted(store)).id not in ids
            with pytest.raises(Overloaded):
                await accepted(store)

    asyncio.run(scenario())


def test_the_rate_is_read_from_redis(settings: Settings) -> None:
    async def scenario() -> None:
        async with (
            connect(settings) as store,
            store.consumer("preprocess", "p") as preprocess,
            store.consumer("inference:small", "i") as inference,
        ):
            for _ in range(FEW + 4):
                await accepted(store)
            for ticket in await preprocess.take(4):
                await decoded(store, ticket)
                preprocess.done(ticket)
            taken = await inference.take(4)
            await finished(store, taken[0])
            await store.admission._sample()
            for ticket in taken[1:]:
                assert await finished(store, ticket)
            for ticket in taken:
                inference.done(ticket)
            store.admission._sampled_s -= 0.5
            await store.admission._sample()
            assert 0 < store.admission.rate_per_s <= 6

    asyncio.run(scenario())

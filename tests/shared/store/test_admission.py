"""Admission: how the rate is measured, what limits the queue from the first second, and what Retry-After says."""

import asyncio
import time

import pytest

from shared.errors import Overloaded
from shared.settings import Settings
from shared.store import Store, connect
from shared.store.admission import FEW, LEARN_S, LEAST_OPEN, MOST_S, SAMPLE_S, SHUT_S, START_OPEN, WINDOW_S, Admission
from tests.shared.store.conftest import accepted, changed, decoded, finished


@pytest.fixture
def admission(settings: Settings) -> Admission:
    admission = Store(settings).admission
    admission._tried_s = float("inf")  # these tests say themselves what is seen
    return admission


def test_the_rate_is_learned_from_a_busy_mesh_only(admission: Admission) -> None:
    admission.observe(0, 2, 10.0)
    admission.observe(3, 2, 11.0)
    assert admission.rate_per_s == 0, "three jobs in a second, for no more were sent"
    admission.observe(3, FEW, 12.0)
    admission.observe(53, FEW, 13.0)
    assert admission.rate_per_s == 50
    admission.observe(54, 1, 14.0)
    admission.observe(54, FEW, 14.1)
    admission.observe(60, FEW, 14.1 + LEARN_S / 2)
    assert admission.rate_per_s == 50, "idle is not slow, and one batch no rate"
    admission.observe(84, FEW, 15.1)
    assert admission.rate_per_s == pytest.approx(30)
    admission.observe(999, FEW, 15.2 + WINDOW_S)
    admission.observe(0, FEW, 16.0 + WINDOW_S)
    assert admission.rate_per_s == pytest.approx(30), "a long pause or an emptied Redis teach nothing"


def test_the_door_shuts_before_the_rate_is_known_and_opens_as_jobs_end(admission: Admission) -> None:
    since_s = time.monotonic() - LEARN_S
    admission.observe(0, START_OPEN // 2, since_s)
    admission.check()
    for _ in range(START_OPEN // 2):
        admission.accepted()
    with pytest.raises(Overloaded) as refusal:
        admission.check()
    assert refusal.value.retry_after_s == 1
    # A moment later the rate is known, and what was let in is more than ends in time.
    admission._accepted = 0
    admission.observe(15, START_OPEN, since_s + LEARN_S, accepted=START_OPEN // 2)
    assert admission.rate_per_s == 20
    with pytest.raises(Overloaded) as refusal:
        admission.check()
    assert refusal.value.retry_after_s == pytest.approx((START_OPEN - 20 * 20) / 20, abs=2), "so many must end first"
    admission.observe(20, 20 * 20 - 20, time.monotonic())
    admission.check()


def test_nobody_is_sent_away_by_what_was_seen_long_ago(admission: Admission) -> None:
    admission.observe(0, START_OPEN, time.monotonic() - 5.0)
    admission.check()


def test_retry_after_is_a_place_in_the_line(admission: Admission) -> None:
    assert admission.retry_after_s(0) == 1, "nothing is known yet"
    admission.rate_per_s = 10.0
    told = [admission.retry_after_s(0) for _ in range(100)]
    assert told == sorted(told)
    assert 9 <= told[-1] <= 11, "a hundred before it, ten a second"
    assert admission.retry_after_s(10_000) == MOST_S


def test_a_line_is_as_fast_as_its_share_of_the_doors(admission: Admission) -> None:
    # Of the jobs that all gateways accept, this one accepts a third.
    for number in range(60):
        admission.observe(number * 20, 1000, number * 1.0 + 1, accepted=7 if number else 0)
    assert admission.rate_per_s == pytest.approx(20)
    told = [admission.retry_after_s(0) for _ in range(100)]
    assert told[-1] == pytest.approx(100 / 7, abs=2)


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
            assert (await accepted(store)).id not in ids, "Redis knows better than the door"
            with pytest.raises(Overloaded):
                await accepted(store)

    asyncio.run(scenario())


def test_no_more_are_let_in_at_first_than_it_takes_to_learn_the_rate(settings: Settings) -> None:
    async def scenario() -> None:
        async with connect(settings) as store:
            taken, refused_by = 0, ""
            while not refused_by:
                try:
                    store.admission.check()
                except Overloaded:
                    refused_by = "the door"
                    break
                try:
                    await accepted(store)
                except Overloaded:
                    refused_by = "Redis"
                taken += 1
            assert FEW < taken <= START_OPEN
            # Whoever refused: in a moment the door has seen that nothing ends, and stays shut by itself.
            await asyncio.sleep(SHUT_S + SAMPLE_S + 0.1)
            store.admission.wait_s()
            await asyncio.gather(store.admission._sampling or asyncio.sleep(0))
            with pytest.raises(Overloaded):
                store.admission.check()

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
            await store.admission._sample()
            for ticket in taken:
                assert await finished(store, ticket)
                inference.done(ticket)
            await asyncio.sleep(LEARN_S)
            await store.admission._sample()
            assert 1 < store.admission.rate_per_s <= 4 / LEARN_S
            assert store.admission.open_now(time.monotonic()) == pytest.approx(FEW, abs=2)

    asyncio.run(scenario())

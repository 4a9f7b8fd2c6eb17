"""Wrong clocks and deaf subscribers: neither has an effect on jobs (rows 30 and 32 of the bad days)."""

import asyncio
import socket
import time
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest

from shared.settings import Settings
from shared.store import connect
from tests.shared.store.conftest import accepted, decoded, finished


@pytest.mark.parametrize("off_s", [3600, -3600])
def test_a_clock_that_is_an_hour_off_has_no_effect(settings: Settings, monkeypatch: pytest.MonkeyPatch, off_s: int) -> None:
    really = time.time
    monkeypatch.setattr(time, "time", lambda: really() + off_s)

    async def scenario() -> None:
        async with (
            connect(settings) as store,
            store.consumer("preprocess", "p") as preprocess,
            store.consumer("inference:small", "i") as inference,
        ):
            job = await accepted(store)
            assert abs(datetime.fromisoformat(job.created_at).astimezone(UTC).timestamp() - really()) < 5
            assert await store.endings.sweep(0) == 0
            (ticket,) = await preprocess.take(1)
            assert abs(ticket.deadline_ms / 1000 - really() - settings.job_deadline_s) < 5
            assert await decoded(store, ticket)
            preprocess.done(ticket)
            (ticket,) = await inference.take(1)
            assert await finished(store, ticket)
            inference.done(ticket)
            ended = await store.jobs.read(job.id)
            assert ended.status == "succeeded"
            assert 0 <= ended.timings_ms["total"] < 10_000

    asyncio.run(scenario())


def test_a_subscriber_that_never_reads_slows_nobody(settings: Settings) -> None:
    async def scenario() -> None:
        parts = urlsplit(settings.redis_url)
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect((parts.hostname, parts.port))
            deaf.sendall(b"PSUBSCRIBE mesh:*\r\n")
            async with (
                connect(settings) as store,
                store.events,
                store.consumer("preprocess", "p") as preprocess,
                store.consumer("inference:small", "i") as inference,
            ):
                payload = bytes(100_000)
                for _ in range(100):  # far more than its socket takes
                    await store._connection.run(("PUBLISH", "mesh:results:other", payload))
                job = await accepted(store, reply_to=store.events.channel)
                with store.events.expect(job.id) as waiter:
                    started_s = time.monotonic()
                    (ticket,) = await preprocess.take(1)
                    assert await decoded(store, ticket)
                    preprocess.done(ticket)
                    (ticket,) = await inference.take(1)
                    assert await finished(store, ticket)
                    inference.done(ticket)
                    ended = await waiter.wait(5)
                    assert ended is not None
                    assert time.monotonic() - started_s < 2

    asyncio.run(scenario())

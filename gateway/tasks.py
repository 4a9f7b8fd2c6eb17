"""`python -m gateway.tasks`: the work off the hot path, which is the delivery of webhooks, by an arq worker.

    outbox in Redis ──relay──▶ arq's queue ──▶ deliver ──▶ POST ──▶ log of deliveries
                                  ▲              └─ not taken ─┐
                                  └──── later, for hours ──────┘

The relay takes an entry out of the outbox only once arq has it, under a name that keeps it from having it twice; arq keeps it
in Redis until it is delivered or given up. So nothing is lost, whichever process dies; a receiver may see a webhook twice,
with the same `webhook-id`. arq ends with its connection to Redis and is started again here. Nothing is pickled. arq knows no
Redis Cluster: where the mesh has one, arq's queue is in the Redis that MESH_TASKS_REDIS_URL names.
"""

import asyncio
import contextlib
import os
import random
import secrets
import socket
import sys
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

import msgspec
import structlog
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.worker import Retry, Worker, func

from gateway import webhooks
from gateway.webhooks import Sender
from shared import service
from shared.errors import ExpiredJob, MeshError, StoreUnavailable
from shared.exposition import exposed
from shared.heartbeat import beat_forever
from shared.messages import Delivery, job_from_msgpack, timestamp
from shared.settings import Settings, SettingsError
from shared.store import Store, connect
from shared.store.connection import typed_errors
from shared.store.webhooks import Due

QUEUE = "mesh:tasks"
AT_ONCE = 32
POLL_S = 0.2
TAKE_S = 1.0
RESTART_S = 1.0
LEAVE_S = 1.0
"""Part of the time to shut down that is kept for leaving the store."""

SLACK_S = 3600.0
"""How much longer than its last try may take a delivery is kept by arq."""

log = structlog.get_logger()

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode


class Tasks:
    """One tasks process: the relay, and what arq calls."""

    def __init__(self, settings: Settings, store: Store, sender: Sender) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self.jobs_done = 0
        self.last_error: str | None = None
        self._settings = settings
        self._store = store
        self._sender = sender

    def status(self) -> dict[str, Any]:
        """What the heartbeat tells."""
        return {
            "jobs_done": self.jobs_done,
            "last_error": self.last_error,
            "metrics_port": self._settings.metrics_port,
        }

    async def relay(self, queue: ArqRedis) -> None:
        """Hand what is due over to arq, for ever.

        Raises:
            Exception: arq's connection to Redis broke.
        """
        tries = range(1, self._settings.webhook_tries + 1)
        longest_s = sum(webhooks.pause_s(self._settings.webhook_retry_s, attempt) * 1.5 for attempt in tries) + SLACK_S
        while True:
            try:
                for due in await self._store.webhooks.take(self.name, AT_ONCE, TAKE_S):
                    body = await self._document(due)
                    if body is not None:
                        await queue.enqueue_job(
                            "deliver",
                            due.subject_id,
                            due.url,
                            body,
                            _job_id=f"{due.kind}:{due.subject_id}",
                            _expires=timedelta(seconds=longest_s),
                        )
                    await self._store.webhooks.done(due)
            except MeshError as error:
                log.warning("relay.waits", error=error.detail)
                await asyncio.sleep(random.uniform(0, RESTART_S))  # noqa: S311 - jitter needs no secrecy

    async def deliver(self, ctx: dict[Any, Any], subject_id: str, url: str, body: bytes) -> None:
        """Try once to tell a callback; arq calls it again as long as it raises Retry."""
        attempt = int(ctx["job_try"])
        sent = await self._sender.send(url, subject_id, body)
        is_last = sent.delivered or sent.is_final or attempt >= self._settings.webhook_tries
        pause_s = 0.0
        if not is_last:
            pause_s = webhooks.pause_s(self._settings.webhook_retry_s, attempt, sent.retry_after_s)
            pause_s *= random.uniform(0.8, 1.2)  # noqa: S311 - jitter needs no secrecy
        now_ms = self._store.clock.now_ms()
        delivery = Delivery(
            attempt=attempt,
            at=timestamp(now_ms),
            url=url,
            delivered=sent.delivered,
            took_ms=sent.took_ms,
            status=sent.status,
            error=sent.error,
            next_at=None if is_last else timestamp(now_ms + pause_s * 1000),
        )
        self.last_error = sent.error or self.last_error
        self.jobs_done += is_last
        log.info("webhook.tried", subject=subject_id, attempt=attempt, status=sent.status, error=sent.error, is_last=is_last)
        with contextlib.suppress(MeshError):  # the log is for people; the delivery does not hang on it
            await self._store.webhooks.log(subject_id, delivery)
        if not is_last:
            raise Retry(defer=timedelta(seconds=pause_s))

    async def _document(self, due: Due) -> bytes | None:
        """What is posted, or `None` if there is nothing left to tell."""
        if due.kind == "job":
            return webhooks.document(job_from_msgpack(due.result))
        try:
            return webhooks.document(await self._store.batches.read(due.subject_id, with_results=False))
        except ExpiredJob:
            log.warning("webhook.too_late", subject=due.subject_id)
            return None


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Deliver until `stop` is set.

    Raises:
        SettingsError: the mesh's Redis is a cluster, and none is named for arq.
    """
    async with connect(settings) as store, Sender(settings) as sender:
        tasks = Tasks(settings, store, sender)
        beat = asyncio.create_task(beat_forever(store, settings.heartbeat_s, "tasks", tasks.name, tasks.status))
        try:
            async with exposed(settings, store.ready.is_set):
                await _work_until(settings, store, tasks, stop)
        finally:
            beat.cancel()
            await asyncio.gather(beat, return_exceptions=True)


async def _work_until(settings: Settings, store: Store, tasks: Tasks, stop: asyncio.Event) -> None:
    """Start arq again whenever it ends, once there is something to ask where its queue may be."""
    if not settings.tasks_redis_url:
        await _either(store.ready.wait(), stop.wait())
        if store.is_cluster and settings.webhook_secret:
            raise SettingsError("MESH_REDIS_URL leads to a Redis Cluster, which arq does not know: set MESH_TASKS_REDIS_URL")
        if store.is_cluster:  # without a secret no webhook is ever accepted
            log.info("tasks.idle", why="there are no webhooks without MESH_WEBHOOK_SECRET")
            await stop.wait()
    while not stop.is_set():
        try:
            with typed_errors():
                await _work(settings, tasks, stop)
        except StoreUnavailable as error:
            tasks.last_error = error.detail
            log.warning("tasks.store_unavailable", error=error.detail)
            await asyncio.sleep(RESTART_S)
        except Exception as error:
            tasks.last_error = str(error)
            log.exception("tasks.restarted")
            await asyncio.sleep(RESTART_S)


async def _work(settings: Settings, tasks: Tasks, stop: asyncio.Event) -> None:
    """An arq worker and the relay, until one of them ends or `stop` is set."""
    queue = await create_pool(_redis(settings), job_serializer=_pack, job_deserializer=_unpack, default_queue_name=QUEUE)
    worker = Worker(
        [func(tasks.deliver, name="deliver", max_tries=settings.webhook_tries + 3)],  # a stopped worker's try counts as well
        queue_name=QUEUE,
        redis_pool=queue,
        handle_signals=False,
        max_jobs=AT_ONCE,
        job_timeout=settings.webhook_timeout_s + 10,
        keep_result=0,
        poll_delay=POLL_S,
        job_serializer=_pack,
        job_deserializer=_unpack,
        log_results=False,
    )
    running = [asyncio.create_task(work) for work in (worker.async_run(), tasks.relay(queue), stop.wait())]
    try:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        worker.allow_pick_jobs = False
        if deliveries := [task for task in worker.tasks.values() if not task.done()]:
            # What is being told is told to its end; it would else be told again.
            await asyncio.wait(deliveries, timeout=max(settings.shutdown_s - LEAVE_S, LEAVE_S))
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        with contextlib.suppress(asyncio.CancelledError):  # what it has in hand is canceled, and comes back
            await worker.close()


async def _either(*waits: Coroutine[Any, Any, object]) -> None:
    """Wait until one of these is done."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


def _redis(settings: Settings) -> RedisSettings:
    found = RedisSettings.from_dsn(settings.tasks_redis_url or settings.redis_url)
    found.ssl_ca_certs = settings.redis_ca or None
    return found


if __name__ == "__main__":
    sys.exit(service.main("tasks", run))

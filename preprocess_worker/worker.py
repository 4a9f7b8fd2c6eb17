"""The preprocess worker: takes jobs a little ahead of its decoders, and hands their tensors on to inference.

    queue ─take─▶ ticket ─▶ upload ─▶ decoder ─▶ tensor ─decoded─▶ queue of the model
                                         └─ what is wrong with the picture ─fail─▶ end

A job is never lost: whatever cannot be told to the store stays pending in the queue, and its lease hands it on.
"""

import asyncio
import os
import random
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog

from preprocess_worker.areas import TensorAreas, make_arena
from preprocess_worker.decoder import Decoded
from preprocess_worker.formats import Limits
from preprocess_worker.pool import DecoderPool
from preprocess_worker.rendering import Rendering
from preprocess_worker.room import Room
from preprocess_worker.sharing import Sharing
from shared import cores, metrics, tracing
from shared.errors import DecoderCrashed, Internal, MeshError, Overloaded, StoreUnavailable
from shared.exposition import exposed
from shared.heartbeat import beat_forever
from shared.live_registry import LiveRegistry
from shared.log import about
from shared.messages import Ticket
from shared.settings import Settings
from shared.store import Store, connect
from shared.store.streams import Consumer
from shared.store.upload_files import FoundFile
from shared.store.uploads import Elsewhere

T = TypeVar("T")

TAKE_BLOCK_S = 1.0
"""How long a take waits for a job; a stop is noticed at the latest after this."""

AHEAD = 2
"""Jobs for each decoder that are taken before it is free, so that it decodes while Redis answers. They are taken a job for each
decoder at a time: one by one, each would be a script and a sync of its own."""

SLOTS_PER_DECODER = 16
"""Slots of the arena: decoders may be so many pictures ahead of inference, as long as it gives slots back."""

CRASHES_MOST = 2
"""At the second crash of a decoder it is the picture's fault, not chance."""

RETRY_LEAST_S, RETRY_MOST_S = 0.1, 2.0
LEAVE_S = 1.0
"""Part of the time to shut down that is kept for ending decoders and leaving the store."""

log = structlog.get_logger()


class _OverdueError(Exception):
    """The job's deadline passed before the store could be told; the sweep ends it."""


class Worker:
    """One worker process' state: its store, its decoders, what it holds."""

    def __init__(self, settings: Settings, registry: LiveRegistry, store: Store, pool: DecoderPool, consumer: Consumer) -> None:
        self.sharing = Sharing(settings, store, pool.areas)
        self._settings = settings
        self._registry = registry
        self._store = store
        self._pool = pool
        self._consumer = consumer
        self._jobs: set[asyncio.Task[None]] = set()
        self._most = pool.size * (1 + AHEAD)
        self._room = Room(settings, registry, store, pool.areas)
        self._jobs_done = 0
        self._last_error: str | None = None

    def status(self) -> dict[str, Any]:
        """The fields of this worker's heartbeat."""
        engine = self._pool.engine
        return {
            "jobs_done": self._jobs_done,
            "last_error": self._registry.problem or self.sharing.last_error or self._last_error,
            "metrics_port": self._settings.metrics_port,
            "details": {
                "decoders": self._pool.size,
                "decoder_restarts": self._pool.restarts,
                "libvips": engine.libvips if engine else None,
                "libvips_simd": bool(engine and engine.has_simd),
                "tensor_store": self.sharing.kind,
                "arena": self._pool.areas.arena.name if self._pool.areas.arena else None,
            },
        }

    async def work(self, stop: asyncio.Event) -> None:
        """Take jobs until `stop`, then finish those in hand for as long as the settings give."""
        stopped = asyncio.create_task(stop.wait())
        while not stop.is_set():
            free = await self._wait_for_free(stopped)
            room = await self._room.wait(len(self._jobs), stop)
            # Never canceled: entries that Redis had just delivered would wait for their lease to end.
            for ticket in await self._consumer.take(min(free, room), block_s=TAKE_BLOCK_S) if not stop.is_set() else []:
                self._room.take()
                task = asyncio.create_task(self._handle(ticket))
                self._jobs.add(task)
                task.add_done_callback(self._jobs.discard)
        stopped.cancel()
        if self._jobs:
            log.info("worker.finishing", jobs=len(self._jobs))
            _, late = await asyncio.wait(self._jobs, timeout=max(self._settings.shutdown_s - TAKE_BLOCK_S - LEAVE_S, LEAVE_S))
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _wait_for_free(self, stopped: asyncio.Task[Any]) -> int:
        """Wait until a job for each decoder can be taken, or for the stop: while Redis is away no job ends before its deadline.
        Returns how many can be taken."""
        while (free := self._most - len(self._jobs)) < self._pool.size and not stopped.done():
            await asyncio.wait({*self._jobs, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return free

    async def _handle(self, ticket: Ticket) -> None:
        about(ticket)
        now_ms = self._store.clock.now_ms()
        tracing.past(
            "wait preprocess", ticket.traceparent, tracing.of(ticket),
            began_ago_ms=now_ms - ticket.queued_ms, ended_ago_ms=now_ms - ticket.claimed_ms,
        )  # fmt: skip
        try:
            if not self._overdue(ticket):  # else the sweep is about to end it
                with tracing.start("preprocess", ticket.traceparent, tracing.of(ticket), kind="consumer") as span:
                    await self._decode(ticket, span)
                self._jobs_done += 1
        except _OverdueError:
            log.warning("job.left_to_sweep")
        except Exception as error:
            self._last_error = f"{type(error).__name__}: {error}"
            log.exception("job.broken")
        finally:
            self._consumer.done(ticket)

    async def _decode(self, ticket: Ticket, span: tracing.Span) -> None:
        started = time.perf_counter()
        waited_ms = float(max(ticket.claimed_ms - ticket.queued_ms, 0))
        try:
            model = self._registry.of_job(ticket.model, ticket.served_as)
            ticket.served_as = model.served_as  # that it was accepted with, unless nobody here knows it any more
            upload, ticket.picture = ticket.picture, None  # not kept for as long as the ticket is
            picture = await self._surely(ticket, lambda: self._store.uploads.fetch(ticket.id, upload))
            try:
                decoded = await self._pool.decode(
                    picture, model.input_width, model.input_height, header_only=model.track == "D"
                )
            finally:
                if isinstance(picture, FoundFile):
                    picture.close()
        except Elsewhere:
            log.info("job.elsewhere")
            await asyncio.sleep(random.uniform(0, RETRY_MOST_S))  # noqa: S311 - jitter needs no secrecy
            await self._surely(ticket, lambda: self._store.claims.release(ticket))
        except DecoderCrashed as error:
            span.fail(error)
            await self._crashed(ticket, error)
        except MeshError as error:
            span.fail(f"{error.code}: {error.detail}")
            await self._fail(ticket, error)
        except _OverdueError:
            raise
        except Exception as error:
            span.fail(error)
            log.exception("job.failed_unexpectedly")
            await self._fail(ticket, Internal(f"{type(error).__name__} in the preprocess worker"))
        else:
            timings_ms = {"preprocess_wait": waited_ms, "preprocess": round((time.perf_counter() - started) * 1000, 3)}
            image = decoded.image
            span.set({"mesh.image": f"{image.width}x{image.height} {image.format}", "mesh.decode_ms": decoded.decode_ms})
            kept = await self._hand_on(ticket, decoded, timings_ms)
            log.debug("job.decoded", kept=kept, decode_ms=round(decoded.decode_ms, 3), **timings_ms)

    async def _hand_on(self, ticket: Ticket, decoded: Decoded, timings_ms: dict[str, float]) -> bool:
        place = decoded.place
        slot = place.slot if place and not decoded.affine else None
        kept = False
        try:
            kept = await self._surely(
                ticket,
                lambda: self._store.claims.decoded(
                    ticket,
                    image=decoded.image,
                    placement=decoded.placement,
                    tensor=decoded.tensor,
                    timings_ms=timings_ms,
                    slot=str(slot or ""),
                    affine=decoded.affine,
                ),
            )
        except BaseException:
            kept = True  # perhaps: its answer may have been lost
            raise
        finally:
            if slot and kept:
                self.sharing.handed_on(slot, ticket)
            elif place:
                self._pool.areas.give_back(place)
        return kept

    async def _crashed(self, ticket: Ticket, error: DecoderCrashed) -> None:
        crashes = await self._surely(ticket, lambda: self._store.claims.crashed(ticket))
        log.warning("job.decoder_crashed", crashes=crashes)
        if crashes >= CRASHES_MOST:
            await self._fail(ticket, error)
        else:
            await self._surely(ticket, lambda: self._store.claims.release(ticket))

    async def _fail(self, ticket: Ticket, error: MeshError) -> None:
        self._last_error = f"{error.code}: {error.detail}"
        log.info("job.failed", code=error.code, detail=error.detail)
        await self._surely(ticket, lambda: self._store.endings.fail(ticket, error))

    async def _surely(self, ticket: Ticket, action: Callable[[], Awaitable[T]]) -> T:
        """Do something with the store, again and again while it is away or full, until the job's deadline."""
        retry_s = RETRY_LEAST_S
        while True:
            try:
                return await action()
            except (StoreUnavailable, Overloaded) as error:
                if self._overdue(ticket):
                    raise _OverdueError from error
                metrics.STORE_RETRIES.labels("preprocess").inc()
                log.warning("store.retried", error=error.detail)
                await asyncio.sleep(random.uniform(0, retry_s))  # noqa: S311 - jitter needs no secrecy
                retry_s = min(retry_s * 2, RETRY_MOST_S)

    def _overdue(self, ticket: Ticket) -> bool:
        return self._store.clock.now_ms() >= ticket.deadline_ms


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Work until `stop` is set.

    Raises:
        RegistryError: the registry of models cannot be used.
        DecoderGone: no decoder starts.
    """
    registry = LiveRegistry(settings.models)
    limits = Limits(settings.max_pixels, settings.max_side, frozenset(settings.formats.split(",")))
    size = settings.decoders or cores.available()
    largest = max(model.tensor_bytes for model in registry.now.served.values())
    areas = TensorAreas(None if settings.tensor_store == "redis" else make_arena(largest, size * SLOTS_PER_DECODER))
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    async with (
        connect(settings) as store,
        DecoderPool(size, settings.decode_timeout_s, limits, areas=areas) as pool,
        store.consumer("preprocess", name) as consumer,
        exposed(settings, store.ready.is_set),
        asyncio.TaskGroup() as group,
    ):
        metrics.DECODERS.set(size)
        if (arena := areas.arena) is not None:
            metrics.TENSOR_SLOTS.labels("busy").set_function(lambda: arena.busy)
            metrics.TENSOR_SLOTS.labels("all").set(arena.slots)
        worker = Worker(settings, registry, store, pool, consumer)
        upkeep = [
            group.create_task(store.sweep_forever()),
            group.create_task(worker.sharing.keep_up()),
            group.create_task(Rendering(settings, store, limits).work()),
            group.create_task(beat_forever(store, settings.heartbeat_s, "preprocess", name, worker.status)),
        ]
        log.info("worker.started", name=name, decoders=size)
        await worker.work(stop)
        for task in upkeep:
            task.cancel()
    log.info("worker.stopped", name=name)

"""One model's loop: take what waits when a slot frees, run it as one batch, end its jobs.

    queue ──take──▶ tensors ──▶ runtime ──▶ head ──▶ detections ──finish (all in one round trip)──▶ Redis

A lone picture goes at once. While `MESH_INFERENCE_SLOTS` batches are in flight the queue grows, and the next batch is what has
come meanwhile. Where pictures had to wait for a decoder, cores are what is short, and a batch costs less of them than its
pictures one by one: then it waits for more, a moment as long as its pictures have waited or a fifth of a longer wait, at most
`MESH_INFERENCE_LINGER_MS`, and no longer than a full batch takes to come. Where decoders are what holds pictures up, nothing is
lost by it: the next batch is not ready any sooner.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from inference_worker.detections import detections, thresholds
from inference_worker.encoded import Encoded
from inference_worker.heads import HEADS
from inference_worker.runtime import Runtime
from shared import log as lines
from shared import metrics, tracing
from shared.errors import (
    CorruptImage,
    DeadlinePassed,
    InferenceFailed,
    InferenceUnavailable,
    Internal,
    MeshError,
    StoreUnavailable,
    UploadLost,
)
from shared.messages import Affine, Outcome, Ticket
from shared.models import Model
from shared.store import Store
from shared.store.tensors import Tensor

TAKE_S = 1.0
"""How long one read of the queue waits; a stopping worker waits as long."""

LEAST_PAUSE_MS = 2.0
"""Less is not worth a timer."""

WHOLE_MS, WAIT_SHARE = 15.0, 0.2
"""A batch may wait for more pictures as long as its own have waited for a decoder: so much in whole, then this share."""

PACE_SHARE, SLOWEST_S = 0.2, 1.0
"""How quickly what is known of the pace follows what is seen, and the slowest pace that is told apart."""

RETRY_LEAST_S, RETRY_MOST_S = 0.05, 2.0
INFER_TIMEOUT_S = 30.0
"""No model of ours takes this long; a Triton that hangs is asked again."""

log = structlog.get_logger()

T = TypeVar("T")


class Batching:
    """The loop of one model in one worker."""

    def __init__(
        self, store: Store, runtime: Runtime, model: Model, *, worker: str, slots: int, linger_ms: float = 0.0
    ) -> None:
        self._linger_ms = linger_ms
        self.model = model
        self.jobs_done = 0
        self.batches = 0
        self.last_error: str | None = None
        self._store = store
        self._runtime = runtime
        self._worker = worker
        self._slots = slots
        self._most = 1
        self._pace = Pace()

    async def is_ready(self) -> bool:
        """Whether a batch of this model would be run now."""
        return await self._runtime.is_ready(self.model)

    async def run(self, stop: asyncio.Event, drain_s: float) -> None:
        """Work until `stop` is set, then end the batches in flight within `drain_s`."""
        in_flight: set[asyncio.Task[None]] = set()
        stopped = asyncio.create_task(stop.wait())
        async with self._store.consumer(f"inference:{self.model.served_as}", self._worker) as consumer:
            while not stop.is_set():
                if len(in_flight) >= self._slots:
                    await asyncio.wait({*in_flight, stopped}, return_when=asyncio.FIRST_COMPLETED)
                    continue
                # Never canceled: what Redis has handed to us by then would only come back after its lease.
                limit = await self._batch_limit()
                tickets = await consumer.take(limit, TAKE_S)
                missing = limit - len(tickets)
                if tickets and missing and (pause_s := worth_waiting_s(tickets, self._linger_ms, self._pace.time_s(missing))):
                    await asyncio.sleep(pause_s)
                    tickets += await consumer.take(missing, 0.0)
                if tickets:
                    self._pace.took(len(tickets))
                    task = asyncio.create_task(self._batch(tickets))
                    in_flight.add(task)
                    task.add_done_callback(in_flight.discard)
                    task.add_done_callback(lambda _, tickets=tickets: [consumer.done(ticket) for ticket in tickets])
            if in_flight:
                await asyncio.wait(in_flight, timeout=drain_s)
        stopped.cancel()

    async def _batch_limit(self) -> int:
        """The registry's or Triton's limit, whichever is less; the last known while Triton does not tell."""
        try:
            self._most = min(self.model.max_batch, await self._runtime.max_batch(self.model))
        except MeshError as error:
            self.last_error = f"{error.code}: {error.detail}"
        return self._most

    async def _batch(self, tickets: list[Ticket]) -> None:
        if len(tickets) == 1:
            lines.about(tickets[0])
        try:
            tensors = await self._stored(lambda: self._pictures(tickets), tickets)
            good: list[tuple[Ticket, Tensor]] = []
            for ticket, tensor in zip(tickets, tensors, strict=True):
                if tensor is None:
                    await self._again(ticket)
                elif not ticket.affine and len(tensor) != self.model.tensor_bytes:
                    await self._fail(
                        ticket,
                        Internal(f"the tensor has {len(tensor)} bytes, not {self.model.tensor_bytes}; was the model replaced?"),
                    )
                else:
                    good.append((ticket, tensor))
            if good:
                await self._infer(good, alone_after_failure=len(good) > 1)
        except StoreUnavailable as error:
            # Their deadlines passed; the sweep ends them.
            log.warning("batch.given_up", jobs=[lines.who(ticket) for ticket in tickets], error=error.detail)
        except Exception:
            log.exception("batch.failed", jobs=[lines.who(ticket) for ticket in tickets])
            for ticket in tickets:
                await self._fail(ticket, Internal("the inference worker failed"))

    async def _pictures(self, tickets: list[Ticket]) -> list[Tensor | None]:
        """What the model is run on: tensors, or on track D uploads with their affines; `None` where one is gone."""
        uploads = iter(await self._store.uploads.get_many([ticket for ticket in tickets if ticket.affine]))
        tensors = iter(await self._store.tensors.get_many([ticket for ticket in tickets if not ticket.affine]))
        return [_encoded(next(uploads), ticket.affine) if ticket.affine else next(tensors) for ticket in tickets]

    async def _again(self, ticket: Ticket) -> None:
        """Have a picture decoded again whose tensor is out of reach."""
        try:
            await self._stored(lambda: self._store.claims.redecode(ticket), [ticket])
            log.info("job.decoded_again", **lines.who(ticket), slot=ticket.slot)
        except UploadLost as error:
            await self._fail(ticket, error)

    async def _infer(self, batch: list[tuple[Ticket, Tensor]], *, alone_after_failure: bool) -> None:
        """Run a batch until it succeeds, its members' deadlines pass, or the model refuses it."""
        pause_s = RETRY_LEAST_S
        while batch := await self._in_time(batch):
            left_s = (max(ticket.deadline_ms for ticket, _ in batch) - self._store.clock.now_ms()) / 1000
            try:
                await self._run(batch, min(left_s, INFER_TIMEOUT_S))
            except InferenceUnavailable as error:
                self.last_error = f"{error.code}: {error.detail}"
                jobs = [lines.who(ticket) for ticket, _ in batch]
                log.warning("inference.retry", model=self.model.name, error=error.detail, retry_s=round(pause_s, 2), jobs=jobs)
                await asyncio.sleep(random.uniform(0, pause_s))  # noqa: S311 - jitter needs no secrecy
                pause_s = min(pause_s * 2, RETRY_MOST_S)
            except (InferenceFailed, CorruptImage) as error:
                if alone_after_failure:
                    # One of them may be what the model refuses: each gets one try of its own.
                    jobs = [lines.who(ticket) for ticket, _ in batch]
                    log.warning("inference.singly", model=self.model.name, jobs=jobs, error=error.detail)
                    for member in batch:
                        await self._infer([member], alone_after_failure=False)
                else:
                    for ticket, _ in batch:
                        await self._fail(ticket, error)
                return
            else:
                return

    async def _in_time(self, batch: list[tuple[Ticket, Tensor]]) -> list[tuple[Ticket, Tensor]]:
        """The members whose deadlines have not passed; the others fail."""
        now_ms = self._store.clock.now_ms()
        for ticket, _ in batch:
            if ticket.deadline_ms <= now_ms:
                why = self.last_error or ""
                unavailable = why.startswith(InferenceUnavailable.code)
                error = InferenceUnavailable(why.partition(": ")[2]) if unavailable else DeadlinePassed("no time was left")
                await self._fail(ticket, error)
        return [(ticket, tensor) for ticket, tensor in batch if ticket.deadline_ms > now_ms]

    async def _run(self, batch: Sequence[tuple[Ticket, Tensor]], timeout_s: float) -> None:
        tickets = [ticket for ticket, _ in batch]
        attributes: dict[str, tracing.Value] = {
            "mesh.model": self.model.name, "mesh.track": self.model.track, "mesh.batch_size": len(batch),
        }  # fmt: skip
        # A span has one parent: the batch is in the trace of its first job, and linked to all of them.
        members = [ticket.traceparent for ticket in tickets]
        with tracing.start("batch", members[0], attributes, kind="consumer", links=members) as span:
            try:
                await self._run_traced(batch, tickets, timeout_s, attributes)
            except MeshError as error:
                self._trace(tickets, span, error)
                raise
            self._trace(tickets, span)

    def _trace(self, tickets: Sequence[Ticket], batch: tracing.Span, error: MeshError | None = None) -> None:
        """What the batch was to each of its jobs, in that job's own trace."""
        if not tracing.is_on():
            return
        now_ms = self._store.clock.now_ms()
        for ticket in tickets:
            claimed_ago_ms = now_ms - ticket.claimed_ms
            attributes = tracing.of(ticket) | {"mesh.batch_size": len(tickets)}
            tracing.past(
                "wait inference", ticket.traceparent, attributes,
                began_ago_ms=now_ms - ticket.queued_ms, ended_ago_ms=claimed_ago_ms,
            )  # fmt: skip
            tracing.past(
                "inference", ticket.traceparent, attributes, began_ago_ms=claimed_ago_ms, links=[batch.traceparent],
                error=f"{error.code}: {error.detail}" if error else None,
            )  # fmt: skip

    async def _run_traced(
        self,
        batch: Sequence[tuple[Ticket, Tensor]],
        tickets: list[Ticket],
        timeout_s: float,
        attributes: dict[str, tracing.Value],
    ) -> None:
        started_s = time.perf_counter()
        server = "torch" if self.model.track == "A" else "triton"
        with tracing.start(server, tracing.current(), attributes, kind="client"):
            outputs = await self._runtime.infer(self.model, [tensor for _, tensor in batch], timeout_s)
        inferred_s = time.perf_counter()
        found = HEADS[self.model.head](outputs, [thresholds(ticket, self.model) for ticket in tickets])
        results = [detections(picture, ticket, self.model) for picture, ticket in zip(found, tickets, strict=True)]
        inference_ms = round((inferred_s - started_s) * 1000, 3)
        postprocess_ms = round((time.perf_counter() - inferred_s) * 1000, 3)
        outcomes = [
            (
                ticket,
                Outcome(
                    detections=result,
                    batch_size=len(batch),
                    timings_ms={
                        "inference_wait": float(max(ticket.claimed_ms - ticket.queued_ms, 0)),
                        "inference": inference_ms,
                        "postprocess": postprocess_ms,
                    },
                ),
            )
            for ticket, result in zip(tickets, results, strict=True)
        ]
        # Pixels that were overwritten meanwhile were another picture's: whoever has the job now will do it.
        outcomes = [(ticket, outcome) for ticket, outcome in outcomes if self._store.tensors.holds(ticket)]
        with tracing.start("finish", tracing.current(), attributes, kind="producer"):
            kept = await self._stored(lambda: self._store.endings.finish(outcomes), tickets)
        for (ticket, _), ended in zip(outcomes, kept, strict=True):
            if ended:
                self._store.tensors.give_back(ticket)
        self.jobs_done += len(batch)
        self.batches += 1
        metrics.batch_ran(self.model.name, len(batch), self._most)

    async def _fail(self, ticket: Ticket, error: MeshError) -> None:
        log.info("job.failed", **lines.who(ticket), code=error.code, detail=error.detail)
        self.last_error = f"{error.code}: {error.detail}"
        self.jobs_done += 1
        if await self._stored(lambda: self._store.endings.fail(ticket, error), [ticket]):
            self._store.tensors.give_back(ticket)

    async def _stored(self, call: Callable[[], Awaitable[T]], tickets: Sequence[Ticket]) -> T:
        """Do something with Redis, again and again while it is away: the work is done and must not be lost."""
        pause_s = RETRY_LEAST_S
        while True:
            try:
                return await call()
            except StoreUnavailable as error:
                if self._store.clock.now_ms() > max(ticket.deadline_ms for ticket in tickets):
                    raise
                metrics.STORE_RETRIES.labels("inference").inc()
                log.warning("store.retry", error=error.detail, retry_s=round(pause_s, 2))
                await asyncio.sleep(random.uniform(0, pause_s))  # noqa: S311 - jitter needs no secrecy
                pause_s = min(pause_s * 2, RETRY_MOST_S)


def _encoded(picture: bytes | None, affine: Affine) -> Encoded | None:
    return None if picture is None else Encoded.of(picture, affine)


def worth_waiting_s(tickets: Sequence[Ticket], linger_ms: float, full_s: float) -> float:
    """How long a batch should wait for more: not at all on an idle mesh, and under load no longer than its own pictures have
    waited for a decoder, at most `linger_ms`, and no longer than until it is full, which takes `full_s`."""
    waited_ms = min(ticket.timings_ms.get("preprocess_wait", 0.0) for ticket in tickets)
    pause_ms = min(max(min(waited_ms, WHOLE_MS), waited_ms * WAIT_SHARE), linger_ms, full_s * 1000)
    return pause_ms / 1000 if pause_ms >= LEAST_PAUSE_MS else 0.0


class Pace:
    """How quickly pictures come, as seen by who takes them."""

    def __init__(self) -> None:
        self._interval_s = SLOWEST_S
        self._took_s = time.monotonic()

    def took(self, count: int) -> None:
        """So many pictures were taken since this was told last."""
        now_s = time.monotonic()
        interval_s = min((now_s - self._took_s) / count, SLOWEST_S)
        self._interval_s += PACE_SHARE * (interval_s - self._interval_s)
        self._took_s = now_s

    def time_s(self, count: int) -> float:
        """How long so many more are likely to take."""
        return self._interval_s * count

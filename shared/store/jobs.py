"""Jobs: the hash is the truth, and every change of it is one script.

    accept ──▶ queued ──claim──▶ processing (decoding) ──decoded──▶ (decoded) ──claim──▶ (inferring) ──finish──▶ succeeded
                 ▲                    │                                                     │
                 └──────release───────┴─────────────────────────────────────────────────────┤
                                                        fail, cancel, sweep ────────────────┴──▶ failed | canceled | expired

Work is at least once; the visible result is exactly one: a worker shows its ticket's fence, and only the last claim's fits.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from shared import metrics, tracing
from shared.access import NOBODY, Tenant
from shared.errors import (
    DeadlinePassed,
    ExpiredJob,
    IdempotencyMismatch,
    InvalidParameter,
    MeshError,
    Overloaded,
    StoreUnavailable,
    TooManyRequests,
    UnknownJob,
    UploadLost,
    is_ours,
)
from shared.messages import (
    TERMINAL,
    Affine,
    ImageInfo,
    Job,
    JobOptions,
    JobProblem,
    Outcome,
    Placement,
    Status,
    Ticket,
    job_from_msgpack,
    job_to_json,
    job_to_msgpack,
    timestamp,
)
from shared.models import Model, Registry
from shared.settings import Settings
from shared.slow import SlowStages
from shared.store import keys
from shared.store.admission import Admission
from shared.store.budget import ByteBudget
from shared.store.clock import Clock
from shared.store.connection import Command, Connection
from shared.store.heartbeats import pairs
from shared.store.ids import Ids
from shared.store.tensors import Tensor, TensorStore
from shared.store.uploads import FULL, SHARE_FULL

RESULT_RESERVE_BYTES = 16 * 1024
"""What a result is reckoned to take in Redis: the hash, its place in the results stream, and the books."""

SWEEP_GRACE_MS = 2_000
"""A worker that gives a job up at its deadline has a better reason to tell than the sweep; it gets this much time."""

SWEEP_AT_ONCE = 100

PICTURE_BYTES = 1 << 20
"""A picture up to this size comes along when its job is taken; a larger one is fetched on its own, past small ones."""

_STEPS = {"preprocess": "decoding"}
"""Queue -> what a job that is taken from it is doing then; `inferring` for all others."""

DEAD_SHARE_OF_BUDGET = 1 / 16
"""What the pictures of dead letters may take, beside the budget: they are no longer reserved in it."""

_pack = msgspec.msgpack.Encoder().encode
_options = msgspec.msgpack.Decoder(JobOptions).decode
_image = msgspec.msgpack.Decoder(ImageInfo).decode
_placement = msgspec.msgpack.Decoder(Placement).decode
_affine = msgspec.msgpack.Decoder(Affine).decode
_timings = msgspec.msgpack.Decoder(dict[str, float]).decode


class _Told(msgspec.Struct, frozen=True):
    """Whom to tell of an end, where there is no ticket that says it."""

    created_ms: int
    reply_to: str
    tenant: str


class Jobs:
    """All that can be done to jobs."""

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        ids: Ids,
        clock: Clock,
        budget: ByteBudget,
        tensors: TensorStore,
        admission: Admission,
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._ids = ids
        self._clock = clock
        self._budget = budget
        self._tensors = tensors
        self._admission = admission
        self._result_ttl_ms = int(settings.result_ttl_s * 1000)
        self._dead_ttl_ms = int(max(settings.dead_letter_ttl_s, settings.result_ttl_s) * 1000)
        self._slow = SlowStages(settings.slow_stage_ms)
        self._public = job_to_json if settings.event_encoding == "json" else job_to_msgpack

    def new_id(self, idempotency_key: str | None = None, tenant: Tenant = NOBODY, beside: str = "") -> str:
        """A new job's ID; see `Ids.new`."""
        return self._ids.new(idempotency_key, tenant.name, beside)

    def check_owner(self, job_id: str, tenant: Tenant) -> None:
        """See that a job is this tenant's; see `Ids.check_owner`."""
        self._ids.check_owner(job_id, tenant.name)

    def partition(self, job_id: str) -> int:
        """Where a job lies; see `Ids.partition`."""
        return self._ids.partition(job_id)

    # --- the gateway's side ---------------------------------------------------------------------------------------

    async def accept(
        self,
        job_id: str,
        *,
        model: Model,
        options: JobOptions,
        body: bytes | None,
        upload_bytes: int,
        reply_to: str = "",
        idempotency_key: str | None = None,
        request_hash: str = "",
        upload_ms: float = 0.0,
        deadline_s: float | None = None,
        traceparent: str = "",
        tenant: Tenant = NOBODY,
        batch: str = "",
    ) -> Job:
        """Accept a job in one step; its upload was staged, or comes along as `body` in the same round trip.

        `batch` is the ID of the batch whose member it is; both lie in one partition.

        The same key with the same request hash gives the job that was accepted before.

        Raises:
            Overloaded: the byte budget is spent, the queue too long, or a staged upload outlived its staging time.
            TooManyRequests: the tenant's share of the budget is spent.
            IdempotencyMismatch: the key was used with another request.
            StoreUnavailable: Redis does not answer; nothing is half accepted.
        """
        partition = self._ids.partition(job_id)
        now_ms = self._clock.now_ms()
        deadline_ms = int((deadline_s or self._settings.job_deadline_s) * 1000)
        job = Job(
            id=job_id, status="queued", model=model.name, track=model.track, created_at=timestamp(now_ms),
            timings_ms={"upload": round(upload_ms, 3)},
        )  # fmt: skip
        job_key, upload_key = keys.job(partition, job_id), keys.upload(partition, job_id)
        limit_bytes = await self._budget.limit_bytes()
        most_open = self._admission.most_open()
        channel, *more_channels = self._channels_of(job_id, tenant.name)
        commands: list[Command] = []
        if body is not None:
            commands.append(("SET", upload_key, body, "PX", deadline_ms + self._result_ttl_ms))
        commands.append(
            self._connection.call(
                "accept",
                [
                    job_key, upload_key, keys.live(partition), keys.reserved(partition),
                    keys.queue(partition, "preprocess"),
                    keys.idempotency(partition, idempotency_key) if idempotency_key else job_key,
                ],
                job_id, upload_bytes + model.tensor_bytes + RESULT_RESERVE_BYTES, limit_bytes,
                deadline_ms, self._result_ttl_ms, request_hash, channel, self._public(job),
                tenant.name, int(limit_bytes * tenant.byte_share), *(more_channels or [""]), most_open,
                "model", model.name, "track", model.track, "created_ms", int(now_ms), "options", _pack(options),
                "upload_bytes", upload_bytes, "timings", _pack(job.timings_ms), "reply_to", reply_to,
                "traceparent", traceparent, "tenant", tenant.name, *(["batch", keys.batch(partition, batch)] if batch else []),
                *(["callback", options.callback_url, "outbox", keys.outbox(partition)] if options.callback_url else []),
            )
        )  # fmt: skip
        verdict, *details = (await self._connection.run(*commands))[-1]
        match bytes(verdict):
            case b"new":
                metrics.ACCEPTED.labels(model.name, model.track).inc()
                return job
            case b"same":
                earlier = bytes(details[0]).decode()
                return job if earlier == job_id else await self.read(earlier)
            case b"mismatch":
                raise IdempotencyMismatch("this Idempotency-Key was used with another picture or other parameters")
            case b"lost":
                raise Overloaded("the upload took so long that it was dropped", retry_after_s=1)
            case b"share":
                raise TooManyRequests(SHARE_FULL, retry_after_s=self._admission.retry_after_s(0))
            case b"busy":
                why = "the mesh has more work than it can do in time"
                raise self._admission.full(why, too_many_jobs=int(details[0]) - most_open)
            case _:
                raise self._admission.full(FULL, too_many_bytes=int(details[0]) - limit_bytes)

    async def accept_again(self, job_id: str, registry: Registry, idempotency_key: str) -> Job:
        """Accept the picture of an ended job, which is still kept, as a new job with the same options.

        Raises:
            InvalidParameter: the job has not ended.
            UploadLost: the picture is not kept.
            UnknownModel: the registry no longer has its model.
            UnknownJob, ExpiredJob, Overloaded, StoreUnavailable: see `read` and `accept`.
        """
        partition = self._ids.partition(job_id)
        answer, body = await self._connection.run(
            ("HGETALL", keys.job(partition, job_id)), ("GET", keys.upload(partition, job_id))
        )
        fields = pairs(answer)
        if b"status" not in fields:
            raise ExpiredJob("this job has ended and is no longer kept", job_id=job_id)
        if b"result" not in fields:
            raise InvalidParameter("this job has not ended yet", job_id=job_id)
        if body is None or b"options" not in fields:
            raise UploadLost("the picture of this job is no longer kept", job_id=job_id)
        model = registry.get(fields[b"model"].decode())
        tenant = Tenant(name=fields.get(b"tenant", b"").decode())
        new_id = self.new_id(idempotency_key, tenant)
        return await self.accept(
            new_id, model=model, options=_options(fields[b"options"]), body=bytes(body), upload_bytes=len(body),
            idempotency_key=idempotency_key, request_hash="", tenant=tenant, traceparent=tracing.begin("replay"),
        )  # fmt: skip

    async def read(self, job_id: str) -> Job:
        """The job as it is now.

        Raises:
            UnknownJob: the ID was never given.
            ExpiredJob: its result is no longer kept.
        """
        partition = self._ids.partition(job_id)
        (answer,) = await self._connection.run(("HGETALL", keys.job(partition, job_id)))
        return self.from_fields(job_id, pairs(answer))

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job unless it has ended; returns it as it is afterwards."""
        for _ in range(3):  # it may end on its own between reading and canceling
            job = await self.read(job_id)
            if job.status in TERMINAL or await self._end(job, "canceled"):
                return job
        return await self.read(job_id)

    # --- the workers' side ----------------------------------------------------------------------------------------

    async def take(self, partition: int, stage: str, consumer: str, at_most: int) -> tuple[str, list[Ticket]]:
        """Claim new entries of a queue; returns the newest entry's ID, and tickets. Small pictures come along for decoding.

        Raises:
            UnknownGroup: the queue's group is gone: Redis was emptied.
            StoreUnavailable: Redis does not answer.
        """
        step = _STEPS.get(stage, "inferring")
        (answer,) = await self._connection.run(
            self._connection.call(
                "take", [keys.queue(partition, stage)], keys.GROUP, consumer, at_most, step,
                keys.job(partition, ""), keys.upload(partition, "") if step == "decoding" else "", PICTURE_BYTES,
            )
        )  # fmt: skip
        newest, *taken = answer
        tickets: list[Ticket] = []
        for entry_id, job_id, fields, picture in taken:
            ticket = self._ticket(partition, bytes(entry_id).decode(), bytes(job_id).decode(), pairs(fields))
            ticket.picture = picture
            tickets.append(ticket)
        return bytes(newest).decode(), tickets

    async def claim(self, partition: int, stage: str, entries: Sequence[tuple[str, str]]) -> list[Ticket]:
        """Claim entries that were taken over, pairs of entry ID and job ID. What has ended or moved on is left out."""
        step = _STEPS.get(stage, "inferring")
        answers = await self._connection.run(
            *(
                self._connection.call(
                    "claim", [keys.job(partition, job_id), keys.queue(partition, stage)], entry_id, keys.GROUP, step
                )
                for entry_id, job_id in entries
            )
        )
        return [
            self._ticket(partition, entry_id, job_id, pairs(answer))
            for (entry_id, job_id), answer in zip(entries, answers, strict=True)
            if answer
        ]

    async def announce(self, tickets: Iterable[Ticket]) -> None:
        """Tell who follows these jobs that they are being worked on."""
        commands = [
            ("PUBLISH", channel, self._public(self._processing(ticket)))
            for ticket in tickets
            for channel in self._channels_of(ticket.id, ticket.tenant)
        ]
        if commands:
            await self._connection.run(*commands)

    async def decoded(
        self,
        ticket: Ticket,
        *,
        image: ImageInfo,
        placement: Placement,
        tensor: Tensor,
        timings_ms: dict[str, float],
        slot: str = "",
        affine: Affine | None = None,
    ) -> bool:
        """Hand a decoded picture to inference. False: the job ended or another worker has it; the tensor is dropped.

        Where a `slot` of shared memory is named, the tensor lies there, and is not stored. With an `affine` there is no tensor:
        inference reads the upload itself.
        """
        name = keys.tensor(ticket.partition, ticket.id, ticket.fence)
        ttl_ms = max(int(ticket.deadline_ms - self._clock.now_ms()) + self._result_ttl_ms, 1000)
        *_, kept = await self._connection.run(
            *([] if slot or affine else [self._tensors.put(name, tensor, ttl_ms)]),
            self._connection.call(
                "decoded",
                [
                    keys.job(ticket.partition, ticket.id), keys.upload(ticket.partition, ticket.id), name,
                    keys.queue(ticket.partition, "preprocess"),
                    keys.queue(ticket.partition, f"inference:{ticket.model}"), keys.live(ticket.partition),
                ],
                ticket.id, ticket.fence, ticket.entry_id, keys.GROUP, "1", "slot", slot,
                "affine", _pack(affine) if affine else b"",
                "image", _pack(image), "placement", _pack(placement),
                "timings", _pack(ticket.timings_ms | timings_ms), "decoded_ms", int(self._clock.now_ms()),
            ),
        )  # fmt: skip
        return bool(kept)

    async def finish(self, results: Sequence[tuple[Ticket, Outcome]]) -> list[bool]:
        """End jobs with what was found, all in one round trip. False where another end came first."""
        jobs: list[Job] = []
        commands: list[Command] = []
        for ticket, outcome in results:
            job = self._processing(ticket)
            job.detections, job.batch_size = outcome.detections, outcome.batch_size
            job.timings_ms = ticket.timings_ms | outcome.timings_ms
            commands.append(self._end_command(job, "succeeded", str(ticket.fence), ticket))
            jobs.append(job)
        ends = await self._connection.run(*commands) if commands else []
        return [
            self._counted(job, kept, ticket.traceparent) for job, kept, (ticket, _) in zip(jobs, ends, results, strict=True)
        ]

    async def fail(self, ticket: Ticket, error: MeshError, timings_ms: dict[str, float] | None = None) -> bool:
        """End a job with an error. False: another end came first."""
        job = self._processing(ticket)
        job.error = JobProblem(error.code, error.detail)
        job.timings_ms = ticket.timings_ms | (timings_ms or {})
        command = self._end_command(job, "failed", str(ticket.fence), ticket, await self._budget.limit_bytes())
        return self._counted(job, (await self._connection.run(command))[0], ticket.traceparent)

    async def release(self, ticket: Ticket) -> bool:
        """Give a claimed job back to the end of its queue."""
        stage = "preprocess" if ticket.tensor is None else f"inference:{ticket.model}"
        (kept,) = await self._connection.run(
            self._connection.call(
                "release",
                [keys.job(ticket.partition, ticket.id), keys.queue(ticket.partition, stage)],
                ticket.id, ticket.fence, ticket.entry_id, keys.GROUP,
            )
        )  # fmt: skip
        return bool(kept)

    async def redecode(self, ticket: Ticket) -> bool:
        """Have a picture decoded again whose tensor cannot be reached. False: the fence is lost or the job ended.

        Raises:
            UploadLost: there is nothing to decode any more.
        """
        (kept,) = await self._connection.run(
            self._connection.call(
                "redecode",
                [
                    keys.job(ticket.partition, ticket.id), keys.upload(ticket.partition, ticket.id),
                    keys.queue(ticket.partition, f"inference:{ticket.model}"), keys.queue(ticket.partition, "preprocess"),
                ],
                ticket.id, ticket.fence, ticket.entry_id, keys.GROUP,
            )
        )  # fmt: skip
        if kept < 0:
            raise UploadLost("the decoded picture is no longer kept")
        return bool(kept)

    async def slots_of(self, tickets: Sequence[Ticket]) -> list[str]:
        """The slot of shared memory that each job's tensor is in now; empty where it is in none (any more)."""
        found = await self._connection.run(*(("HGET", keys.job(each.partition, each.id), "slot") for each in tickets))
        return [bytes(slot or b"").decode() for slot in found]

    async def crashed(self, ticket: Ticket) -> int:
        """Count a decoder's crash on this job's picture; returns how many there were."""
        return int(await self._connection.run_one("HINCRBY", keys.job(ticket.partition, ticket.id), "crashes", 1))

    async def sweep(self, partition: int) -> int:
        """End what is past its deadline, drop uploads that were never accepted, forget those that were kept long enough;
        returns how many of the first two."""
        await self._connection.run(
            self._connection.call("forget_kept", [keys.kept(partition), keys.reserved(partition)], SWEEP_AT_ONCE)
        )
        due = await self._connection.run_one(
            "ZRANGEBYSCORE", keys.live(partition), "-inf", int(self._clock.now_ms()) - SWEEP_GRACE_MS,
            "LIMIT", 0, SWEEP_AT_ONCE,
        )  # fmt: skip
        for member in due:
            job_id = bytes(member).decode()
            try:
                job = await self.read(job_id)
            except (ExpiredJob, UnknownJob):
                await self._connection.run(
                    self._connection.call(
                        "discard",
                        [
                            keys.upload(partition, job_id), keys.live(partition), keys.reserved(partition),
                            keys.job(partition, job_id),
                        ],
                        job_id,
                    )
                )  # fmt: skip
            else:
                job.error = JobProblem(DeadlinePassed.code, f"not done within its deadline; it was {job.status}")
                await self._end(job, "expired")
        return len(due)

    # --- between the hash and the messages -----------------------------------------------------------------------

    async def _end(self, job: Job, status: Status) -> bool:
        """End a job without a fence: cancel and expiry overrule whoever works on it."""
        partition = self._ids.partition(job.id)
        created_ms, reply_to, tenant = await self._connection.run_one(
            "HMGET", keys.job(partition, job.id), "created_ms", "reply_to", "tenant"
        )
        if created_ms is None:
            raise StoreUnavailable("the job vanished while it was being ended", retry_after_s=1)
        told = _Told(int(created_ms), bytes(reply_to or b"").decode(), bytes(tenant or b"").decode())
        command = self._end_command(job, status, "", told, await self._budget.limit_bytes())
        return self._counted(job, (await self._connection.run(command))[0])

    def _end_command(self, job: Job, status: Status, fence: str, told: "_Told | Ticket", budget_bytes: int = 0) -> Command:
        """Turn `job` into its final form and make the command that stores and tells it."""
        now_ms = self._clock.now_ms()
        job.status, job.stage, job.finished_at = status, None, timestamp(now_ms)
        job.timings_ms["total"] = round(max(now_ms - told.created_ms, 0.0), 3)
        partition = self._ids.partition(job.id)
        keeps = status == "succeeded" and isinstance(told, Ticket) and told.options.keep_upload
        is_dead = job.error is not None and is_ours(job.error.code)
        return self._connection.call(
            "end",
            [
                keys.job(partition, job.id), keys.upload(partition, job.id), keys.live(partition),
                keys.reserved(partition), keys.RESULTS_STREAM, keys.dead(partition), keys.kept(partition),
            ],
            job.id, fence, status, job_to_msgpack(job), self._public(job), self._result_ttl_ms, keys.GROUP,
            self._settings.results_stream_length, "1" if keeps else "0", told.reply_to,
            self._dead_ttl_ms if is_dead else "", self._settings.dead_letters, int(budget_bytes * DEAD_SHARE_OF_BUDGET),
            keys.RESULTS_CHANNEL, keys.results_of(job.model), *self._channels_of(job.id, told.tenant),
            *([keys.of_tenant(told.tenant, name) for name in (keys.RESULTS_CHANNEL, keys.results_of(job.model))]
              if told.tenant else []),
        )  # fmt: skip

    def _counted(self, job: Job, kept: Any, traceparent: str = "") -> bool:
        """Whether this end is the job's one; then it is counted, and logged if it was slow."""
        if kept:
            metrics.job_ended(job)
            self._slow.tell(job, traceparent)
        return bool(kept)

    @staticmethod
    def _channels_of(job_id: str, tenant: str) -> list[str]:
        """Where the events of one job are told: its own channel, and its tenant's copy of it."""
        channel = keys.events_of(job_id)
        return [channel, keys.of_tenant(tenant, channel)] if tenant else [channel]

    def _processing(self, ticket: Ticket) -> Job:
        return Job(
            id=ticket.id,
            status="processing",
            stage="decoding" if ticket.tensor is None else "inferring",
            model=ticket.model,
            track=ticket.track,
            created_at=timestamp(ticket.created_ms),
            attempts=ticket.attempts,
            image=ticket.image,
            timings_ms=ticket.timings_ms,
        )

    @staticmethod
    def from_fields(job_id: str, fields: dict[bytes, bytes]) -> Job:
        """The job that these fields of its hash are.

        Raises:
            ExpiredJob: there are none: its result is no longer kept.
        """
        if b"status" not in fields:
            raise ExpiredJob("this job has ended and its result is no longer kept", job_id=job_id)
        if b"result" in fields:
            return job_from_msgpack(fields[b"result"])
        state: dict[str, Any] = {
            "id": job_id,
            "status": fields[b"status"].decode(),
            "stage": fields[b"stage"].decode() if b"stage" in fields else None,
            "model": fields[b"model"].decode(),
            "track": fields[b"track"].decode(),
            "created_at": timestamp(int(fields[b"created_ms"])),
            "attempts": int(fields[b"attempts"]),
            "timings_ms": _timings(fields[b"timings"]),
        }
        job = msgspec.convert(state, Job)
        if b"image" in fields:
            job.image = _image(fields[b"image"])
        return job

    @staticmethod
    def _ticket(partition: int, entry_id: str, job_id: str, fields: dict[bytes, bytes]) -> Ticket:
        return Ticket(
            id=job_id,
            partition=partition,
            entry_id=entry_id,
            fence=int(fields[b"fence"]),
            attempts=int(fields[b"attempts"]),
            model=fields[b"model"].decode(),
            track=fields[b"track"].decode(),
            options=_options(fields[b"options"]),
            created_ms=int(fields[b"created_ms"]),
            claimed_ms=int(fields[b"claimed_ms"]),
            queued_ms=int(fields.get(b"decoded_ms", fields[b"created_ms"])),
            deadline_ms=int(fields[b"deadline_ms"]),
            upload_bytes=int(fields[b"upload_bytes"]),
            timings_ms=_timings(fields[b"timings"]),
            image=_image(fields[b"image"]) if b"image" in fields else None,
            placement=_placement(fields[b"placement"]) if b"placement" in fields else None,
            tensor=fields[b"tensor"].decode() if b"tensor" in fields else None,
            slot=fields.get(b"slot", b"").decode(),
            affine=_affine(fields[b"affine"]) if fields.get(b"affine") else None,
            reply_to=fields[b"reply_to"].decode(),
            traceparent=fields[b"traceparent"].decode(),
            tenant=fields.get(b"tenant", b"").decode(),
            crashes=int(fields.get(b"crashes", b"0")),
        )

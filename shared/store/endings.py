"""Endings: every way a job ends, once. Success and failure need the last claim's fence; cancel and expiry overrule it."""

from collections.abc import Sequence
from typing import Any

import msgspec

from shared import metrics
from shared.errors import DeadlinePassed, ExpiredJob, MeshError, StoreUnavailable, UnknownJob, is_ours
from shared.messages import TERMINAL, Job, JobProblem, Outcome, Status, Ticket, job_to_msgpack, timestamp
from shared.settings import Settings
from shared.slow import SlowStages
from shared.store import keys
from shared.store.budget import ByteBudget
from shared.store.clock import Clock
from shared.store.connection import Command, Connection
from shared.store.fields import PUBLIC, processing
from shared.store.jobs import Jobs
from shared.store.upload_files import UploadFiles
from shared.store.uploads import Uploads

SWEEP_GRACE_MS = 2_000
"""A worker that gives a job up at its deadline has a better reason to tell than the sweep; it gets this much time."""

SWEEP_AT_ONCE = 100

DEAD_SHARE_OF_BUDGET = 1 / 16
"""What the pictures of dead letters may take, beside the budget: they are no longer reserved in it."""


class _Told(msgspec.Struct, frozen=True):
    """Whom to tell of an end, where there is no ticket that says it."""

    created_ms: int
    reply_to: str
    tenant: str


class Endings:
    """All ends of jobs."""

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        clock: Clock,
        budget: ByteBudget,
        jobs: Jobs,
        uploads: Uploads,
        files: UploadFiles,
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._clock = clock
        self._budget = budget
        self._jobs = jobs
        self._uploads = uploads
        self._files = files
        self._result_ttl_ms = int(settings.result_ttl_s * 1000)
        self._dead_ttl_ms = int(max(settings.dead_letter_ttl_s, settings.result_ttl_s) * 1000)
        self._slow = SlowStages(settings.slow_stage_ms)
        self._public = PUBLIC[settings.event_encoding]

    async def finish(self, results: Sequence[tuple[Ticket, Outcome]]) -> list[bool]:
        """End jobs with what was found, all in one round trip. False where another end came first."""
        jobs: list[Job] = []
        commands: list[Command] = []
        for ticket, outcome in results:
            job = processing(ticket)
            job.detections, job.batch_size = outcome.detections, outcome.batch_size
            job.timings_ms = ticket.timings_ms | outcome.timings_ms
            commands.append(self._end_command(job, "succeeded", str(ticket.fence), ticket))
            jobs.append(job)
        ends = await self._connection.run(*commands) if commands else []
        self._files.remove([job.id for job, kept in zip(jobs, ends, strict=True) if isinstance(kept, bytes)])
        return [
            self._counted(job, kept, ticket.traceparent) for job, kept, (ticket, _) in zip(jobs, ends, results, strict=True)
        ]

    async def fail(self, ticket: Ticket, error: MeshError, timings_ms: dict[str, float] | None = None) -> bool:
        """End a job with an error. False: another end came first."""
        job = processing(ticket)
        job.error = JobProblem(error.code, error.detail)
        job.timings_ms = ticket.timings_ms | (timings_ms or {})
        command = self._end_command(job, "failed", str(ticket.fence), ticket, await self._budget.limit_bytes())
        return await self._ended(job, command, ticket.traceparent)

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job unless it has ended; returns it as it is afterwards."""
        for _ in range(3):  # it may end on its own between reading and canceling
            job = await self._jobs.read(job_id)
            if job.status in TERMINAL or await self._end(job, "canceled"):
                return job
        return await self._jobs.read(job_id)

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
                job = await self._jobs.read(job_id)
            except (ExpiredJob, UnknownJob):
                await self._uploads.discard_in(partition, job_id)
            else:
                job.error = JobProblem(DeadlinePassed.code, f"not done within its deadline; it was {job.status}")
                await self._end(job, "expired")
        return len(due)

    async def _end(self, job: Job, status: Status) -> bool:
        """End a job without a fence: cancel and expiry overrule whoever works on it."""
        partition = self._jobs.partition(job.id)
        created_ms, reply_to, tenant = await self._connection.run_one(
            "HMGET", keys.job(partition, job.id), "created_ms", "reply_to", "tenant"
        )
        if created_ms is None:
            raise StoreUnavailable("the job vanished while it was being ended", retry_after_s=1)
        told = _Told(int(created_ms), bytes(reply_to or b"").decode(), bytes(tenant or b"").decode())
        command = self._end_command(job, status, "", told, await self._budget.limit_bytes())
        return await self._ended(job, command)

    def _end_command(self, job: Job, status: Status, fence: str, told: "_Told | Ticket", budget_bytes: int = 0) -> Command:
        """Turn `job` into its final form and make the command that stores and tells it."""
        now_ms = self._clock.now_ms()
        job.status, job.stage, job.finished_at = status, None, timestamp(now_ms)
        job.timings_ms["total"] = round(max(now_ms - told.created_ms, 0.0), 3)
        partition = self._jobs.partition(job.id)
        keeps = status == "succeeded" and isinstance(told, Ticket) and told.options.keep_upload
        is_dead = job.error is not None and is_ours(job.error.code)
        return self._connection.call(
            "end",
            [
                keys.job(partition, job.id), keys.upload(partition, job.id), keys.live(partition),
                keys.reserved(partition), keys.results(partition, in_cluster=self._connection.is_cluster),
                keys.dead(partition), keys.kept(partition), keys.dead_bytes(partition),
                *keys.never(partition, in_cluster=self._connection.is_cluster),
            ],
            job.id, fence, status, job_to_msgpack(job), self._public(job), self._result_ttl_ms, keys.GROUP,
            self._settings.results_stream_length, "1" if keeps else "0", told.reply_to,
            self._dead_ttl_ms if is_dead else "", self._settings.dead_letters, int(budget_bytes * DEAD_SHARE_OF_BUDGET),
            keys.RESULTS_CHANNEL, keys.results_of(job.model), *keys.channels_of(job.id, told.tenant),
            *([keys.of_tenant(told.tenant, name) for name in (keys.RESULTS_CHANNEL, keys.results_of(job.model))]
              if told.tenant else []),
        )  # fmt: skip

    async def _ended(self, job: Job, command: Command, traceparent: str = "") -> bool:
        """Run one end; what it leaves of the upload goes."""
        (kept,) = await self._connection.run(command)
        if isinstance(kept, bytes):
            self._files.remove([job.id])
        return self._counted(job, kept, traceparent)

    def _counted(self, job: Job, kept: Any, traceparent: str = "") -> bool:
        """Whether this end is the job's one; then it is counted, and logged if it was slow."""
        if kept:
            metrics.job_ended(job)
            self._slow.tell(job, traceparent)
        return bool(kept)

"""Batches: many pictures of one request, each an ordinary job, and one hash that knows their order and their progress.

    open ──add (a job, or why there is none)──▶ receiving ──seal──▶ processing ──the last member's end──▶ finished
                                                   └──abandon──▶ gone, with the members canceled

All members lie in the batch's partition, so the script that ends a job counts it in its batch in the same step. A batch
whose gateway died in mid-request is never sealed and goes with its TTL; its jobs end as all jobs do.
"""

import asyncio
from collections.abc import Sequence

import msgspec

from shared.access import NOBODY, Tenant
from shared.errors import ExpiredJob, MeshError, StillAccepting, UnknownJob
from shared.messages import Batch, BatchResult, JobProblem, timestamp
from shared.models import Model
from shared.settings import Settings
from shared.store import keys
from shared.store.clock import Clock
from shared.store.connection import Connection
from shared.store.endings import Endings
from shared.store.fields import job_of
from shared.store.heartbeats import pairs
from shared.store.jobs import Jobs

COUNTED = ("succeeded", "failed", "canceled", "expired", "refused")
CANCEL_AT_ONCE = 16

_pack = msgspec.msgpack.Encoder().encode
_problem = msgspec.msgpack.Decoder(JobProblem).decode


class Opening(msgspec.Struct, frozen=True):
    """A batch that pictures are about to be added to, and the hash of its idempotency key, if it has one.

    `earlier` is the batch that this key has led to, with `earlier_hash` of its request; nothing may be added then.
    """

    id: str
    key: str | None = None
    earlier: str = ""
    earlier_hash: str = ""


class Batches:
    """All that can be done to batches. A batch's ID is made like a job's, and tells its partition and owner like one."""

    def __init__(self, connection: Connection, settings: Settings, clock: Clock, jobs: Jobs, endings: Endings) -> None:
        self._connection = connection
        self._clock = clock
        self._jobs = jobs
        self._endings = endings
        self._result_ttl_ms = int(settings.result_ttl_s * 1000)
        self._kept_ms = int((settings.job_deadline_s + settings.result_ttl_s) * 1000)
        # As long as its request may bring nothing: the longest silence is that of one picture.
        self._receiving_ms = int((settings.body_timeout_s + settings.job_deadline_s) * 1000)

    async def open(
        self, *, model: Model, callback_url: str | None = None, idempotency_key: str | None = None, tenant: Tenant = NOBODY
    ) -> Opening:
        """Begin a batch, or find the one that this idempotency key stands for.

        Raises:
            StillAccepting: a request with this key is being received.
            StoreUnavailable: Redis does not answer.
        """
        batch_id = self._jobs.new_id(idempotency_key, tenant)
        partition = self._jobs.partition(batch_id)
        callback = ["callback_url", callback_url, "outbox", keys.outbox(partition)] if callback_url else []
        opening = Opening(batch_id, idempotency_key)
        verdict, *details = await self._call(
            "batch_open", opening, batch_id, self._receiving_ms,
            "model", model.name, "track", model.track, "created_ms", int(self._clock.now_ms()),
            "channel", keys.events_of_batch(batch_id), *callback,
        )  # fmt: skip
        if bytes(verdict) == b"receiving":
            raise StillAccepting("a request with this Idempotency-Key is still being received", retry_after_s=1)
        if bytes(verdict) == b"sealed":
            earlier, request_hash = (bytes(detail).decode() for detail in details)
            return msgspec.structs.replace(opening, earlier=earlier, earlier_hash=request_hash)
        return opening

    async def add(self, opening: Opening, index: int, member: str | MeshError) -> None:
        """Name the next picture: its job's ID, or why it has none.

        Raises:
            ExpiredJob: the batch is gone, because its request took too long.
        """
        value = member if isinstance(member, str) else b"!" + _pack(JobProblem(member.code, member.detail))
        if not await self._call("batch_add", opening, index, value, self._receiving_ms):
            raise ExpiredJob("the batch took so long to come that it was dropped", job_id=opening.id)

    async def seal(self, opening: Opening, total: int, request_hash: str = "") -> None:
        """Say that all pictures have come.

        Raises:
            ExpiredJob: the batch is gone, because its request took too long.
        """
        if not await self._call("batch_seal", opening, opening.id, total, self._kept_ms, self._result_ttl_ms, request_hash):
            raise ExpiredJob("the batch took so long to come that it was dropped", job_id=opening.id)

    async def abandon(self, opening: Opening, job_ids: Sequence[str]) -> None:
        """Forget a batch that did not come as a whole, and cancel what was accepted of it."""
        await self._call("batch_abandon", opening, opening.id)
        await self._cancel(job_ids)

    async def cancel(self, batch_id: str) -> Batch:
        """Cancel what has not ended yet; returns the batch as it is afterwards.

        Raises:
            UnknownJob, ExpiredJob: there is no such batch (any more).
        """
        _, fields = await self._fields(batch_id)
        await self._cancel([value.decode() for value in _members(fields) if not value.startswith(b"!")])
        return await self.read(batch_id)

    async def read(self, batch_id: str, *, with_results: bool = True) -> Batch:
        """A batch as it is now; with the job of each picture, in order.

        Raises:
            UnknownJob: the ID was never given, or is a job's.
            ExpiredJob: it is no longer kept.
        """
        partition, fields = await self._fields(batch_id)
        status = "finished" if b"finished_ms" in fields else "processing" if b"total" in fields else "receiving"
        batch = Batch(
            id=batch_id,
            status=status,
            model=fields[b"model"].decode(),
            track=fields[b"track"].decode(),
            created_at=timestamp(int(fields[b"created_ms"])),
            finished_at=timestamp(int(fields[b"finished_ms"])) if status == "finished" else None,
            total=int(fields[b"total"]) if b"total" in fields else None,
            ended=int(fields[b"ended"]),
            counts={name: int(fields.get(name.encode(), 0)) for name in COUNTED},
        )
        if with_results:
            batch.results = await self._results(partition, _members(fields))
        return batch

    async def _results(self, partition: int, members: list[bytes]) -> list[BatchResult]:
        """What became of each member, all read in one round trip."""
        ids = [value.decode() for value in members if not value.startswith(b"!")]
        answers = iter(await self._connection.run(*(("HGETALL", keys.job(partition, job_id)) for job_id in ids)) if ids else [])
        results: list[BatchResult] = []
        for index, value in enumerate(members):
            if value.startswith(b"!"):
                results.append(BatchResult(index=index, error=_problem(value[1:])))
                continue
            try:
                job = job_of(value.decode(), pairs(next(answers)))
            except ExpiredJob as error:
                results.append(BatchResult(index=index, error=JobProblem(error.code, error.detail)))
            else:
                results.append(BatchResult(index=index, job=job, error=job.error))
        return results

    async def _fields(self, batch_id: str) -> tuple[int, dict[bytes, bytes]]:
        try:
            partition = self._jobs.partition(batch_id)
        except UnknownJob:
            raise UnknownJob("no batch has this ID") from None
        fields = pairs(await self._connection.run_one("HGETALL", keys.batch(partition, batch_id)))
        if b"id" not in fields:
            if await self._connection.run_one("EXISTS", keys.job(partition, batch_id)):
                raise UnknownJob(f"this is the ID of a job: it is read at /v1/jobs/{batch_id}")
            raise ExpiredJob("this batch is no longer kept", job_id=batch_id)
        return partition, fields

    async def _cancel(self, job_ids: Sequence[str]) -> None:
        for start in range(0, len(job_ids), CANCEL_AT_ONCE):
            some = job_ids[start : start + CANCEL_AT_ONCE]
            # One that is gone has ended; a store that is away lets the rest run to their ends.
            await asyncio.gather(*(self._endings.cancel(job_id) for job_id in some), return_exceptions=True)

    async def _call(self, script: str, opening: Opening, *args: object) -> list[bytes]:
        partition = self._jobs.partition(opening.id)
        batch_key = keys.batch(partition, opening.id)
        key = keys.idempotency(partition, opening.key) if opening.key else batch_key
        more = keys.never(partition, in_cluster=self._connection.is_cluster)
        (answer,) = await self._connection.run(self._connection.call(script, [batch_key, key, *more], *args))
        return answer


def _members(fields: dict[bytes, bytes]) -> list[bytes]:
    """The members in order. One that is being added while a later one is there already is not: they come one by one."""
    members: list[bytes] = []
    while (value := fields.get(b"m:%d" % len(members))) is not None:
        members.append(value)
    return members

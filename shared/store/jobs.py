"""Jobs: the hash is the truth, and every change of it is one script.

    accept ──▶ queued ──claim──▶ processing (decoding) ──decoded──▶ (decoded) ──claim──▶ (inferring) ──finish──▶ succeeded
                 ▲                    │                                                     │
                 └──────release───────┴─────────────────────────────────────────────────────┤
                                                        fail, cancel, sweep ────────────────┴──▶ failed | canceled | expired

Work is at least once; the visible result is exactly one: a worker shows its ticket's fence, and only the last claim's fits.
"""

from shared import metrics, tracing
from shared.access import NOBODY, Tenant
from shared.errors import ExpiredJob, IdempotencyMismatch, InvalidParameter, Overloaded, TooManyRequests, UnknownJob, UploadLost
from shared.messages import MESSAGE_VERSION, Job, JobOptions, timestamp
from shared.models import Model, Registry
from shared.settings import Settings
from shared.store import keys
from shared.store.admission import Admission
from shared.store.budget import ByteBudget
from shared.store.clock import Clock
from shared.store.connection import Command, Connection
from shared.store.fields import PUBLIC, job_of, options_of, pack
from shared.store.heartbeats import pairs
from shared.store.ids import Ids
from shared.store.packing import Pieces
from shared.store.upload_files import Pointer, UploadFiles
from shared.store.uploads import FULL, SHARE_FULL

RESULT_RESERVE_BYTES = 16 * 1024
"""What a result is reckoned to take in Redis: the hash, its place in the results stream, and the books."""


class Jobs:
    """Jobs as the gateway sees them: accepted and read. Workers have `claims`, and all ends are in `endings`."""

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        ids: Ids,
        clock: Clock,
        budget: ByteBudget,
        admission: Admission,
        files: UploadFiles,
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._ids = ids
        self._clock = clock
        self._budget = budget
        self._admission = admission
        self._files = files
        self._result_ttl_ms = int(settings.result_ttl_s * 1000)
        self._public = PUBLIC[settings.event_encoding]

    def new_id(self, idempotency_key: str | None = None, tenant: Tenant = NOBODY, beside: str = "") -> str:
        """A new job's ID; see `Ids.new`."""
        return self._ids.new(idempotency_key, tenant.name, beside)

    def check_owner(self, job_id: str, tenant: Tenant) -> None:
        """See that a job is this tenant's; see `Ids.check_owner`."""
        self._ids.check_owner(job_id, tenant.name)

    def partition(self, job_id: str) -> int:
        """Where a job lies; see `Ids.partition`."""
        return self._ids.partition(job_id)

    async def accept(
        self,
        job_id: str,
        *,
        model: Model,
        options: JobOptions,
        body: bytes | Pieces | None,
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
        """Accept a job in one step; its upload was staged, or comes along as `body` (or as the pointer to its file).

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
        channel, *more_channels = keys.channels_of(job_id, tenant.name)
        commands: list[Command] = []
        if body is not None:
            value = body if isinstance(body, Pieces) else Pieces(body)
            commands.append(("SET", upload_key, value, "PX", deadline_ms + self._result_ttl_ms))
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
                "v", MESSAGE_VERSION, "model", model.name, "served_as", model.served_as, "track", model.track,
                "created_ms", int(now_ms), "options", pack(options),
                "upload_bytes", upload_bytes, "timings", pack(job.timings_ms), "reply_to", reply_to,
                "traceparent", traceparent, "tenant", tenant.name, *(["batch", keys.batch(partition, batch)] if batch else []),
                *(["callback", options.callback_url, "outbox", keys.outbox(partition)] if options.callback_url else []),
            )
        )  # fmt: skip
        verdict, *details = (await self._connection.run(*commands))[-1]
        match bytes(verdict):
            case b"new":
                metrics.accepted(model.name, model.track)
                self._admission.accepted()
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
        pointer, size_bytes = Pointer.of(body), len(body)
        if pointer:
            size_bytes = pointer.size_bytes
            if not self._files.link(job_id, new_id, pointer):
                raise UploadLost("the picture of this job is a file that cannot be reached from here", job_id=job_id)
        return await self.accept(
            new_id, model=model, options=options_of(fields[b"options"]), body=bytes(body), upload_bytes=size_bytes,
            idempotency_key=idempotency_key, request_hash="", tenant=tenant, traceparent=tracing.begin("replay"),
        )  # fmt: skip

    async def read(self, job_id: str) -> Job:
        """The job as it is now.

        Raises:
            UnknownJob: the ID was never given, or is a batch's.
            ExpiredJob: its result is no longer kept.
        """
        partition = self._ids.partition(job_id)
        fields = pairs(await self._connection.run_one("HGETALL", keys.job(partition, job_id)))
        if not fields and await self._connection.run_one("EXISTS", keys.batch(partition, job_id)):
            raise UnknownJob(f"this is the ID of a batch: it is read at /v1/batches/{job_id}")
        return job_of(job_id, fields)

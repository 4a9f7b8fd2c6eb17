"""Pictures with their detections drawn in: asked for by a gateway, made by a preprocess worker, kept for a few minutes.

    gateway ──ask──▶ list of requests ──take──▶ preprocess worker ──put──▶ the picture, or why there is none ──▶ gateway

Drawing again is no harm, so a request has no lease: whoever waits asks again after a while, in case the worker died.
"""

import asyncio

import msgspec
import structlog

from shared.errors import (
    BY_CODE,
    ExpiredJob,
    Internal,
    MeshError,
    NoResult,
    PictureNotKept,
    StoreUnavailable,
    UploadLost,
)
from shared.messages import Drawing, Job
from shared.store import keys
from shared.store.connection import Connection
from shared.store.jobs import Jobs
from shared.store.upload_files import FoundFile
from shared.store.uploads import Uploads

KEPT_S = 300.0
ASK_AGAIN_S = 8.0

_pack = msgspec.msgpack.Encoder().encode

log = structlog.get_logger()


class Request(msgspec.Struct, frozen=True, array_like=True):
    """What is to be drawn, and how."""

    job_id: str
    drawing: Drawing


class Drawn(msgspec.Struct, frozen=True, array_like=True):
    """The encoded picture; or the code and detail of the problem with it."""

    picture: bytes = b""
    code: str = ""
    detail: str = ""


_request = msgspec.msgpack.Decoder(Request).decode
_drawn = msgspec.msgpack.Decoder(Drawn).decode


class Renders:
    """Requests and what came of them."""

    def __init__(self, connection: Connection, partitions: int, jobs: Jobs, uploads: Uploads) -> None:
        self._connection = connection
        self._partitions = partitions
        self._jobs = jobs
        self._uploads = uploads
        self._turn = 0

    # --- the gateway's side ---------------------------------------------------------------------------------------

    async def check(self, job_id: str) -> None:
        """See that a job has something to draw.

        Raises:
            NoResult: it has not succeeded, or not yet.
            PictureNotKept: its picture is not kept.
            UnknownJob, ExpiredJob, StoreUnavailable: see `Jobs.read`.
        """
        job = await self._jobs.read(job_id)
        if job.status != "succeeded":
            raise NoResult(f"the job is {job.status}; there is nothing to draw", job_id=job_id)
        if not await self._connection.run_one("EXISTS", keys.upload(self._jobs.partition(job_id), job_id)):
            raise PictureNotKept("the picture of this job is not kept; send it with keep_upload=true", job_id=job_id)

    async def ask(self, job_id: str, drawing: Drawing) -> bytes | None:
        """The picture if it has been drawn, else `None`; it is then asked for, unless somebody did so a moment ago.

        Raises:
            JobError: the picture cannot be drawn.
        """
        partition = self._jobs.partition(job_id)
        name, asked = keys.render(partition, job_id, str(drawing)), keys.render(partition, job_id, f"{drawing}:asked")
        found, is_first = await self._connection.run(("GET", name), ("SET", asked, "1", "NX", "PX", int(ASK_AGAIN_S * 1000)))
        if found is not None:
            drawn = _drawn(found)
            if drawn.code:
                raise BY_CODE.get(drawn.code, Internal)(drawn.detail, job_id=job_id)
            return drawn.picture
        if is_first:
            await self.pass_on(Request(job_id, drawing))
        return None

    async def pass_on(self, request: Request) -> None:
        """Leave a request to whichever worker comes next."""
        requests = keys.renders(self._jobs.partition(request.job_id))
        await self._connection.run(("RPUSH", requests, _pack(request)), ("PEXPIRE", requests, int(KEPT_S * 1000)))

    # --- the worker's side ----------------------------------------------------------------------------------------

    async def take(self, block_s: float) -> Request | None:
        """The next request, waiting up to `block_s` for it.

        Raises:
            StoreUnavailable: a partition's Redis does not answer, and the others have none.
        """
        failure: StoreUnavailable | None = None
        for _ in range(self._partitions):
            self._turn = (self._turn + 1) % self._partitions
            wait_s = block_s / self._partitions
            try:
                answer = await self._connection.read_group("renders", wait_s, "BLPOP", keys.renders(self._turn), wait_s)
            except StoreUnavailable as error:  # one of several may be away
                failure = error
                continue
            if answer:
                try:
                    return _request(answer[1])
                except (
                    msgspec.DecodeError
                ) as error:  # of a newer gateway, which asks again, perhaps somebody who understands it
                    log.warning("render.not_understood", error=str(error))
        if failure:
            raise failure
        return None

    async def subject(self, request: Request) -> tuple[Job, bytes]:
        """The job and its picture.

        Raises:
            PictureNotKept: one of them is gone meanwhile.
            Elsewhere: another worker can reach the picture.
        """
        try:
            job = await self._jobs.read(request.job_id)
            upload = await self._uploads.fetch(request.job_id)
        except (ExpiredJob, UploadLost):
            raise PictureNotKept("the picture of this job is no longer kept") from None
        if not isinstance(upload, FoundFile):
            return job, upload
        try:
            return job, await asyncio.to_thread(upload.read)
        finally:
            upload.close()

    async def put(self, request: Request, outcome: bytes | MeshError) -> None:
        """Keep what came of a request for a while, and tell who waits."""
        drawn = Drawn(code=outcome.code, detail=outcome.detail) if isinstance(outcome, MeshError) else Drawn(outcome)
        name = keys.render(self._jobs.partition(request.job_id), request.job_id, str(request.drawing))
        await self._connection.run(
            ("SET", name, _pack(drawn), "PX", int(KEPT_S * 1000)),
            ("PUBLISH", keys.events_of_render(request.job_id), str(request.drawing)),
        )

"""Pictures as they were sent: staged before a job is accepted, fetched once by a preprocess worker.

small   goes along with `accept`, into Redis
large   staged piece by piece: in a file of a folder that all who read it share (`shared.store.upload_files`), else in Redis
"""

import asyncio
from collections.abc import Sequence

import structlog

from shared.access import NOBODY, Tenant
from shared.errors import MeshError, TooManyRequests, UploadLost
from shared.messages import Ticket
from shared.store import keys
from shared.store.admission import Admission
from shared.store.budget import ByteBudget
from shared.store.connection import Connection
from shared.store.heartbeats import Heartbeats
from shared.store.ids import Ids
from shared.store.packing import Buffer
from shared.store.upload_files import FoundFile, Pointer, UploadFile, UploadFiles

FULL = "the mesh holds as many bytes as it may"
SHARE_FULL = "this tenant's jobs hold as many bytes as they may"

PIECE_BYTES = 1 << 20
"""What is gathered before a thread writes it to a file."""

RESERVE_BYTES = 4 << 20
"""A file's bytes are reserved with its job, or whenever so many more have come."""

log = structlog.get_logger()


class Elsewhere(Exception):
    """The upload is a file that this process cannot reach, but another worker can."""


class Uploads:
    """Uploads, in Redis a string each: the picture, or a pointer to its file.

    A staged upload survives its last chunk by `staging_s`; one whose gateway died is left to this and to the sweep.
    """

    def __init__(
        self,
        connection: Connection,
        ids: Ids,
        budget: ByteBudget,
        admission: Admission,
        heartbeats: Heartbeats,
        files: UploadFiles,
        *,
        staging_s: float,
        chunk_bytes: int,
    ) -> None:
        self._staging_ms = int(staging_s * 1000)
        self._connection = connection
        self._ids = ids
        self._budget = budget
        self._admission = admission
        self._heartbeats = heartbeats
        self.files = files
        self.chunk_bytes = chunk_bytes

    def stage(self, job_id: str, tenant: Tenant = NOBODY) -> "Staging":
        """Begin to stage an upload that is too large to go along with `accept`."""
        return Staging(self, job_id, tenant, self.files.create(job_id))

    async def append(self, job_id: str, chunk: bytes, tenant: Tenant = NOBODY, file_bytes: int | None = None) -> None:
        """Stage one chunk in Redis and reserve its bytes; or reserve `file_bytes` of a file, to which `chunk` points.

        Raises:
            Overloaded, TooManyRequests: the byte budget or the tenant's share is spent; nothing of this chunk is kept.
            StoreUnavailable: Redis does not answer.
        """
        partition = self._ids.partition(job_id)
        limit = await self._budget.limit_bytes()
        (kept,) = await self._connection.run(
            self._connection.call(
                "stage",
                [keys.upload(partition, job_id), keys.live(partition), keys.reserved(partition)],
                job_id, chunk, limit, self._staging_ms, tenant.name, int(limit * tenant.byte_share),
                "" if file_bytes is None else file_bytes,
            )
        )  # fmt: skip
        verdict, *details = kept
        if bytes(verdict) == b"full":
            raise self._admission.full(FULL, too_many_bytes=int(details[0]) - limit)
        if bytes(verdict) == b"share":
            raise TooManyRequests(SHARE_FULL, retry_after_s=self._admission.retry_after_s(0))

    async def discard(self, job_id: str) -> bool:
        """Drop what is staged under an ID that was not accepted, and give its reservation back. False: it was accepted."""
        return await self.discard_in(self._ids.partition(job_id), job_id)

    async def discard_in(self, partition: int, job_id: str) -> bool:
        """`discard` for what lies in a partition under an ID that may not be one of ours any more."""
        (dropped,) = await self._connection.run(
            self._connection.call(
                "discard",
                [
                    keys.upload(partition, job_id), keys.live(partition), keys.reserved(partition),
                    keys.job(partition, job_id),
                ],
                job_id,
            )
        )  # fmt: skip
        return bool(dropped)

    async def get_many(self, tickets: Sequence[Ticket]) -> list[bytes | None]:
        """The pictures of these jobs in order, in one round trip; `None` where one is gone or out of reach."""
        wanted = (("GET", keys.upload(ticket.partition, ticket.id)) for ticket in tickets)
        found: list[bytes | None] = await self._connection.run(*wanted) if tickets else []
        return [
            upload if upload is None or Pointer.of(upload) is None else await asyncio.to_thread(self._read, ticket.id, upload)
            for ticket, upload in zip(tickets, found, strict=True)
        ]

    async def get(self, ticket: Ticket) -> bytes:
        """The picture of a claimed job.

        Raises:
            UploadLost: it is gone, which only a job that ended meanwhile explains, or the loss of its file.
        """
        (upload,) = await self.get_many([ticket])
        if upload is None:
            raise UploadLost("the upload is no longer kept")
        return bytes(upload)

    async def fetch(self, job_id: str, upload: bytes | None = None) -> bytes | FoundFile:
        """The picture of a job for a preprocess worker: its bytes, or its file, which the caller closes. `upload` is what
        Redis holds, where that is known.

        Raises:
            UploadLost: it is gone, which only a job that ended meanwhile explains, or the loss of its file.
            Elsewhere: another preprocess worker can reach it.
        """
        if upload is None:
            upload = await self._connection.run_one("GET", keys.upload(self._ids.partition(job_id), job_id))
        if upload is None:
            raise UploadLost("the upload is no longer kept")
        pointer = Pointer.of(upload)
        if pointer is None:
            return upload
        if found := self.files.find(job_id, pointer):
            return found
        if pointer.identity != self.files.identity:
            beats = [beat for beat in await self._heartbeats.live() if beat.kind == "preprocess"]
            if any(beat.details.get("uploads") == pointer.identity for beat in beats):
                raise Elsewhere
        raise UploadLost("the file of the upload is gone")

    async def sweep(self) -> int:
        """Remove files of uploads that nothing in Redis points to; returns how many."""
        return await self.files.sweep(self._are_wanted)

    def _read(self, job_id: str, upload: bytes) -> bytes | None:
        pointer = Pointer.of(upload)
        found = self.files.find(job_id, pointer) if pointer else None
        if found is None:
            return None
        try:
            return found.read()
        finally:
            found.close()

    async def _are_wanted(self, job_ids: Sequence[str]) -> list[bool]:
        commands: list[tuple[str, str]] = []
        for job_id in job_ids:
            try:
                partition = self._ids.partition(job_id)
            except MeshError:
                partition = 0  # a name that we never gave: nothing points to it
            commands.append(("EXISTS", keys.upload(partition, job_id)))
        return [bool(found) for found in await self._connection.run(*commands)]


class Staging:
    """One upload on its way to where it waits for its job."""

    def __init__(self, uploads: Uploads, job_id: str, tenant: Tenant, file: UploadFile | None) -> None:
        self._uploads = uploads
        self._job_id = job_id
        self._tenant = tenant
        self._file = file
        self._pieces: list[Buffer] = []
        self._waiting_bytes = 0
        self._reserved_bytes = 0
        self.size_bytes = 0

    @property
    def pointer(self) -> bytes | None:
        """What goes along with `accept` in the place of the picture: nothing, where Redis has all of it."""
        return bytes(Pointer(self._uploads.files.identity, self.size_bytes)) if self._file else None

    async def write(self, chunk: Buffer) -> None:
        """Take the next piece.

        Raises:
            Overloaded, TooManyRequests, StoreUnavailable: see `Uploads.append`.
        """
        self._pieces.append(chunk)
        self._waiting_bytes += len(chunk)
        self.size_bytes += len(chunk)
        if self._waiting_bytes >= (PIECE_BYTES if self._file else self._uploads.chunk_bytes):
            await self._put()

    async def complete(self) -> None:
        """It has come as a whole.

        Raises:
            Overloaded, TooManyRequests, StoreUnavailable: see `Uploads.append`.
        """
        await self._put(last=True)

    async def discard(self) -> None:
        """Drop it, unless it was accepted. Where Redis cannot be reached it is left to the sweep.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        self._pieces = []
        try:
            if await self._uploads.discard(self._job_id) and self._file:
                self._uploads.files.remove([self._job_id])
        finally:
            self.close()

    def close(self, *, wanted: bool = True) -> None:
        """Its job was accepted; or was known before (not `wanted`)."""
        if self._file:
            self._file.close()
            if not wanted:
                self._uploads.files.remove([self._job_id])

    async def _put(self, *, last: bool = False) -> None:
        pieces, self._pieces, self._waiting_bytes = self._pieces, [], 0
        if self._file is not None:
            written_bytes = self._file.size_bytes
            try:
                await self._file.write(pieces, last=last)
            except OSError as error:
                log.warning("upload.to_redis", job_id=self._job_id, error=str(error))
                pieces = [await self._file.read(written_bytes), *pieces]
                self._file.close()
                self._uploads.files.remove([self._job_id])
                self._file = None
            else:
                if self.size_bytes - self._reserved_bytes >= RESERVE_BYTES:
                    self._reserved_bytes = self.size_bytes
                    await self._uploads.append(self._job_id, self.pointer or b"", self._tenant, self.size_bytes)
                return
        data = memoryview(b"".join(pieces))
        for at in range(0, len(data), self._uploads.chunk_bytes):
            await self._uploads.append(self._job_id, bytes(data[at : at + self._uploads.chunk_bytes]), self._tenant)

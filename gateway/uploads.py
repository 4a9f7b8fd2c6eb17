"""A picture on its way from the request into Redis.

    bytes ──▶ magic bytes ──▶ small: kept as they came, and sent along with `accept`
                         └──▶ large: staged as it comes (`shared.store.uploads`), then `accept`

Whatever goes wrong before `accept` - a refusal, a lost client, a stopping gateway - takes what was staged with it.
"""

import hashlib
import time

import msgspec
import structlog

from gateway.mesh import Mesh
from shared import picture_types, tracing
from shared.errors import (
    EmptyBody,
    MeshError,
    ModelUnavailable,
    TooLarge,
    UnsupportedMedia,
)
from shared.messages import Job, JobOptions
from shared.models import Model
from shared.store.packing import Buffer, Pieces
from shared.store.uploads import Staging

log = structlog.get_logger()


class Upload:
    """One picture under the ID that its job will have."""

    def __init__(self, mesh: Mesh, idempotency_key: str | None = None, batch: str = "") -> None:
        mesh.store.admission.check()
        self._key = hash_key(mesh, idempotency_key)
        self._batch = batch
        self.job_id = mesh.store.jobs.new_id(self._key, mesh.tenant, beside=batch)
        self._mesh = mesh
        self._hash = hashlib.blake2b(digest_size=16) if self._key else None
        self._pieces: list[Buffer] = []
        self._held_bytes = 0
        self._staging: Staging | None = None
        self._recognised = False
        self._bytes = 0
        self._started_s = time.monotonic()

    async def write(self, chunk: Buffer) -> None:
        """Take the next piece.

        Raises:
            UnsupportedMedia: the first bytes are not those of a picture format that is on.
            TooLarge: the picture has more bytes than are taken of one.
            Overloaded, StoreUnavailable: a full buffer cannot be staged.
        """
        self._bytes += len(chunk)
        if self._bytes > self._mesh.settings.max_upload_bytes:
            raise TooLarge(f"the picture has more than the {self._mesh.settings.max_upload_bytes} bytes that are taken")
        if self._hash:
            self._hash.update(chunk)
        if self._staging is not None:
            await self._staging.write(chunk)
            return
        self._pieces.append(chunk)
        self._held_bytes += len(chunk)
        if not self._recognised and self._held_bytes >= picture_types.SNIFF_BYTES:
            self._recognise()
        if self._held_bytes >= self._mesh.settings.upload_chunk_bytes:
            self._staging = self._mesh.store.uploads.stage(self.job_id, self._mesh.tenant)
            pieces, self._pieces = self._pieces, []
            for piece in pieces:
                await self._staging.write(piece)

    async def complete(self) -> None:
        """The picture has come as a whole.

        Raises:
            EmptyBody: there was none. Else as `write`.
        """
        if not self._bytes:
            raise EmptyBody("the picture has no bytes")
        if not self._recognised:
            self._recognise()
        if self._staging is not None:
            await self._staging.complete()

    async def accept(
        self, model: Model, options: JobOptions, *, reply_to: str = "", deadline_s: float | None = None, traceparent: str = ""
    ) -> Job:
        """Make it a job; with an idempotency key perhaps one that exists.

        Raises:
            ModelUnavailable, UnknownModel: it was unloaded, or removed, while the picture came.
            Overloaded, StoreUnavailable, IdempotencyMismatch: see `Jobs.accept`; nothing is left behind.
        """
        if self._hash:
            self._hash.update(model.name.encode() + b"\0" + msgspec.msgpack.encode(options))
        upload_ms = self.took_ms
        span = self._span(model, traceparent, upload_ms)
        try:
            model = _present(self._mesh, model)
            job = await self._mesh.store.jobs.accept(
                self.job_id,
                model=model,
                options=options,
                body=self._staging.pointer if self._staging else Pieces(*self._pieces),
                upload_bytes=self._bytes,
                reply_to=reply_to,
                idempotency_key=self._key,
                request_hash=self._hash.hexdigest() if self._hash else "",
                upload_ms=upload_ms,
                deadline_s=deadline_s,
                traceparent=span.traceparent,
                tenant=self._mesh.tenant,
                batch=self._batch,
            )
        except BaseException as error:
            span.fail(error)
            span.end()
            await self.discard()
            raise
        if self._staging:
            self._staging.close(wanted=job.id == self.job_id)
        if job.id != self.job_id:
            span.set({"mesh.job_id": job.id})  # the job of an earlier request with this idempotency key
        span.end()
        return job

    @property
    def took_ms(self) -> float:
        """How long ago its first byte was waited for."""
        return (time.monotonic() - self._started_s) * 1000

    async def discard(self) -> None:
        """Drop what was staged. A store that cannot be reached drops it by itself after the staging time."""
        self._pieces.clear()
        if self._staging is not None:
            try:
                await self._staging.discard()
            except MeshError as error:
                log.warning("upload.not_discarded", job_id=self.job_id, error=error.detail)

    def _span(self, model: Model, traceparent: str, upload_ms: float) -> tracing.Span:
        """The span of accepting: the parent of all that happens to the job later, in whichever process."""
        if not tracing.is_on():
            return tracing.Span(traceparent)
        attributes: dict[str, tracing.Value] = {"mesh.job_id": self.job_id, "mesh.model": model.name, "mesh.track": model.track}
        tracing.past("upload", traceparent, attributes | {"mesh.upload_bytes": self._bytes}, began_ago_ms=upload_ms)
        return tracing.start("accept", traceparent, attributes, kind="producer")

    def _recognise(self) -> None:
        head = b"".join([piece[: picture_types.SNIFF_BYTES] for piece in self._pieces])
        found = picture_types.recognise(head[: picture_types.SNIFF_BYTES])
        taken = self._mesh.settings.formats.split(",")
        if found not in taken:
            what = f"{found} pictures are not taken here" if found else "these bytes do not begin like a picture"
            raise UnsupportedMedia(f"{what}; taken: {', '.join(taken)}")
        self._recognised = True


def hash_key(mesh: Mesh, idempotency_key: str | None) -> str | None:
    """What is stored of an idempotency key: it is the client's, may be long, means nothing to us, and is the tenant's own."""
    if not idempotency_key:
        return None
    return hashlib.blake2b(f"{mesh.tenant.name}\0{idempotency_key}".encode(), digest_size=16).hexdigest()


def _present(mesh: Mesh, model: Model) -> Model:
    """The model as it is served now: while the picture came it may have been unloaded, removed, or replaced by a version."""
    registry = mesh.registry
    if model.name in registry.unloaded:
        raise ModelUnavailable(f"model {model.name!r} is unloaded; `visionmesh models load {model.name}` brings it back")
    if model.served_as in registry.served:
        return model
    newer = registry.get(model.name)
    if newer.labels != model.labels:  # the classes that were asked for are numbers by now
        raise ModelUnavailable(f"model {model.name!r} has just got other classes; send the picture again", retry_after_s=1)
    return newer

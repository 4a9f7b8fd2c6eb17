"""A picture on its way from the request into Redis.

    body ──▶ (multipart) ──▶ magic bytes ──▶ small: one buffer that goes along with `accept`
                                        └──▶ large: staged in chunks as they come, then `accept`

Many pictures of one request go the same way one after the other: each is a job of its own as soon as it has come.
Whatever goes wrong before `accept` - a refusal, a lost client, a stopping gateway - takes the staged chunks with it.
"""

import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable

import msgspec
import structlog
from starlette.requests import Request

from gateway import multipart
from gateway.body import Body
from gateway.mesh import Mesh
from shared import picture_types, tracing
from shared.errors import (
    BadRequest,
    EmptyBody,
    MalformedMultipart,
    MeshError,
    ModelUnavailable,
    RequestError,
    StoreUnavailable,
    TooLarge,
    UnsupportedMedia,
)
from shared.messages import Job, JobOptions
from shared.models import Model

PART_NAMES = ("image", "file")
BATCH_PART_NAMES = ("images", "images[]", "files", *PART_NAMES)
MAX_PARTS = 8

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
        self._buffer = bytearray()
        self._staged_bytes = 0
        self._recognised = False
        self._bytes = 0
        self._started_s = time.monotonic()

    async def write(self, chunk: bytes) -> None:
        """Take the next piece.

        Raises:
            UnsupportedMedia: the first bytes are not those of a picture format that is on.
            TooLarge: the picture has more bytes than are taken of one.
            Overloaded, StoreUnavailable: a full buffer cannot be staged.
        """
        self._buffer += chunk
        self._bytes += len(chunk)
        if self._bytes > self._mesh.settings.max_upload_bytes:
            raise TooLarge(f"the picture has more than the {self._mesh.settings.max_upload_bytes} bytes that are taken")
        if self._hash:
            self._hash.update(chunk)
        if not self._recognised and len(self._buffer) >= picture_types.SNIFF_BYTES:
            self._recognise()
        if len(self._buffer) >= self._mesh.settings.upload_chunk_bytes:
            await self._stage()

    async def complete(self) -> None:
        """The picture has come as a whole.

        Raises:
            EmptyBody: there was none. Else as `write`.
        """
        if not self._buffer and not self._staged_bytes:
            raise EmptyBody("the picture has no bytes")
        if not self._recognised:
            self._recognise()
        if self._staged_bytes and self._buffer:
            await self._stage()

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
        upload_bytes = self._staged_bytes or len(self._buffer)
        attributes: dict[str, tracing.Value] = {"mesh.job_id": self.job_id, "mesh.model": model.name, "mesh.track": model.track}
        tracing.past("upload", traceparent, attributes | {"mesh.upload_bytes": upload_bytes}, began_ago_ms=upload_ms)
        # This span is the parent of all that happens to the job later, in whichever process.
        span = tracing.start("accept", traceparent, attributes, kind="producer")
        try:
            model = _present(self._mesh, model)
            job = await self._mesh.store.jobs.accept(
                self.job_id,
                model=model,
                options=options,
                body=None if self._staged_bytes else bytes(self._buffer),
                upload_bytes=upload_bytes,
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
        self._buffer.clear()
        if self._staged_bytes:
            try:
                await self._mesh.store.uploads.discard(self.job_id)
            except MeshError as error:
                log.warning("upload.not_discarded", job_id=self.job_id, error=error.detail)

    def _recognise(self) -> None:
        found = picture_types.recognise(bytes(self._buffer[: picture_types.SNIFF_BYTES]))
        taken = self._mesh.settings.formats.split(",")
        if found not in taken:
            what = f"{found} pictures are not taken here" if found else "these bytes do not begin like a picture"
            raise UnsupportedMedia(f"{what}; taken: {', '.join(taken)}")
        self._recognised = True

    async def _stage(self) -> None:
        chunk, self._buffer = bytes(self._buffer), bytearray()
        # Counted first: if the answer is lost, what may have been staged is dropped as well.
        self._staged_bytes += len(chunk)
        await self._mesh.store.uploads.append(self.job_id, chunk, self._mesh.tenant)


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


def open_body(request: Request, mesh: Mesh) -> Body:
    """The body of a request under this mesh's limits."""
    return Body(request, max_bytes=mesh.settings.max_upload_bytes, timeout_s=mesh.settings.body_timeout_s)


def open_batch_body(request: Request, mesh: Mesh) -> Body:
    """The body of a request with many pictures under this mesh's limits."""
    return Body(request, max_bytes=mesh.settings.max_batch_bytes, timeout_s=mesh.settings.batch_timeout_s)


async def receive(request: Request, body: Body, mesh: Mesh) -> Upload:
    """Take the one picture of a request, raw or in the part `image` (or `file`) of a multipart body.

    Raises:
        TooLarge, EmptyBody, UnsupportedMedia, MalformedMultipart, BodyTimeout: the request is refused.
        Overloaded, StoreUnavailable: it cannot be taken now.
        Disconnected: the client went away.
    """
    content_type = request.headers.get("content-type", "application/octet-stream")
    upload = Upload(mesh, request.headers.get("idempotency-key") or None)
    try:
        async for chunk in _picture(body, content_type):
            await upload.write(chunk)
        await upload.complete()
        request.scope["spent_ms"] = {"upload": upload.took_ms}
    except BaseException:  # also the cancellation of a stopping gateway
        await upload.discard()
        raise
    return upload


def _picture(body: Body, content_type: str) -> AsyncIterator[bytes]:
    if multipart.is_multipart(content_type):
        return _only_picture(body, content_type)
    if content_type.startswith(("image/", "application/octet-stream")):
        return body.chunks()
    hint = "; with curl use --data-binary @photo.jpg -H 'Content-Type: image/jpeg'" if "urlencoded" in content_type else ""
    raise UnsupportedMedia(f"{content_type!r} is not image/*, application/octet-stream or multipart/form-data{hint}")


async def _only_picture(body: Body, content_type: str) -> AsyncIterator[bytes]:
    """The bytes of the one picture of a multipart body; other parts are passed over."""
    inside, seen = False, False
    async for event in multipart.events(body.chunks(), content_type, max_parts=MAX_PARTS):
        if isinstance(event, multipart.PartBegin):
            inside = event.name in PART_NAMES
            if inside and seen:
                raise MalformedMultipart("more than one picture in a request that takes one")
            seen = seen or inside
        elif isinstance(event, bytes) and inside:
            yield event
    if not seen:
        raise MalformedMultipart(f"no part is named {' or '.join(PART_NAMES)}")


async def picture_parts(
    request: Request, body: Body, mesh: Mesh, hashed: "hashlib.blake2b | None" = None
) -> AsyncGenerator[multipart.Event]:
    """The parts of a multipart request that are pictures, as events; other parts are passed over. All goes into `hashed`.

    Raises:
        TooLarge, MalformedMultipart, BodyTimeout, BadRequest, UnsupportedMedia: the request as a whole is refused.
        Disconnected: the client went away.
    """
    content_type = request.headers.get("content-type", "")
    if not multipart.is_multipart(content_type):
        raise UnsupportedMedia("many pictures come as multipart/form-data, a part `images` for each")
    most = mesh.settings.max_batch_pictures
    count, inside = 0, False
    async for event in multipart.events(body.chunks(), content_type, max_parts=most + MAX_PARTS):
        if isinstance(event, multipart.PartBegin):
            inside = event.name in BATCH_PART_NAMES
            count += inside
            if count > most:
                raise BadRequest(f"more than {most} pictures in one request; send the rest in another")
        if not inside:
            continue
        if hashed is not None:
            hashed.update(event if isinstance(event, bytes) else repr(event).encode())
        yield event
    if not count:
        raise MalformedMultipart(f"no part is named {BATCH_PART_NAMES[0]}")


async def receive_many(
    request: Request, body: Body, mesh: Mesh, *, batch: str = "", hashed: "hashlib.blake2b | None" = None
) -> AsyncGenerator[Upload | MeshError]:
    """Take the pictures of a multipart request one by one: each complete upload, or why this one is refused.

    The receiver accepts or discards each upload before it asks for the next.

    Raises:
        StoreUnavailable: nothing more can be taken now. Else as `picture_parts`.
    """
    taking: _Taking | None = None
    try:
        async with contextlib.aclosing(picture_parts(request, body, mesh, hashed)) as parts:
            async for event in parts:
                if isinstance(event, multipart.PartBegin):
                    taking = _Taking(mesh, batch)
                elif taking is not None and isinstance(event, bytes):
                    await taking.write(event)
                elif taking is not None:
                    taken, taking = await taking.complete(), None
                    yield taken
    finally:
        if taking is not None:
            await taking.discard()


class _Taking:
    """The picture of a part: an upload until it is refused, from then on the reason."""

    def __init__(self, mesh: Mesh, batch: str) -> None:
        self._upload: Upload | None = None
        self._refusal: RequestError | None = None
        try:
            self._upload = Upload(mesh, batch=batch)
        except StoreUnavailable:
            raise
        except RequestError as error:
            self._refusal = error

    async def write(self, chunk: bytes) -> None:
        if self._upload is not None:
            await self._trying(self._upload.write(chunk))

    async def complete(self) -> "Upload | MeshError":
        if self._upload is not None:
            await self._trying(self._upload.complete())
        return self._upload or self._refusal or EmptyBody()

    async def discard(self) -> None:
        if self._upload is not None:
            await self._upload.discard()

    async def _trying(self, step: Awaitable[None]) -> None:
        """A step that may refuse this picture; a store that is away refuses them all."""
        try:
            await step
        except StoreUnavailable:
            raise
        except RequestError as error:
            await self.discard()
            self._upload, self._refusal = None, error

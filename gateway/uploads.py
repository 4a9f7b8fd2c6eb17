"""A picture on its way from the request into Redis.

    body ──▶ (multipart) ──▶ magic bytes ──▶ small: one buffer that goes along with `accept`
                                        └──▶ large: staged in chunks as they come, then `accept`

Whatever goes wrong before `accept` - a refusal, a lost client, a stopping gateway - takes the staged chunks with it.
"""

import hashlib
import time
from collections.abc import AsyncIterator

import msgspec
import structlog
from starlette.requests import Request

from gateway import multipart
from gateway.body import Body
from gateway.mesh import Mesh
from shared import picture_types
from shared.errors import EmptyBody, MalformedMultipart, MeshError, UnsupportedMedia
from shared.messages import Job, JobOptions
from shared.models import Model

PART_NAMES = ("image", "file")
MAX_PARTS = 8

log = structlog.get_logger()


class Upload:
    """One picture under the ID that its job will have."""

    def __init__(self, mesh: Mesh, idempotency_key: str | None = None) -> None:
        mesh.store.admission.check()
        # Only a hash of the key is stored: it is the client's, may be long, means nothing to us, and is the tenant's own.
        named = idempotency_key and f"{mesh.tenant.name}\0{idempotency_key}"
        self._key = named and hashlib.blake2b(named.encode(), digest_size=16).hexdigest()
        self.job_id = mesh.store.jobs.new_id(self._key, mesh.tenant)
        self._mesh = mesh
        self._hash = hashlib.blake2b(digest_size=16) if self._key else None
        self._buffer = bytearray()
        self._staged_bytes = 0
        self._recognised = False
        self._started_s = time.monotonic()

    async def write(self, chunk: bytes) -> None:
        """Take the next piece.

        Raises:
            UnsupportedMedia: the first bytes are not those of a picture format that is on.
            Overloaded, StoreUnavailable: a full buffer cannot be staged.
        """
        self._buffer += chunk
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
            Overloaded, StoreUnavailable, IdempotencyMismatch: see `Jobs.accept`; nothing is left behind.
        """
        if self._hash:
            self._hash.update(model.name.encode() + b"\0" + msgspec.msgpack.encode(options))
        try:
            return await self._mesh.store.jobs.accept(
                self.job_id,
                model=model,
                options=options,
                body=None if self._staged_bytes else bytes(self._buffer),
                upload_bytes=self._staged_bytes or len(self._buffer),
                reply_to=reply_to,
                idempotency_key=self._key,
                request_hash=self._hash.hexdigest() if self._hash else "",
                upload_ms=(time.monotonic() - self._started_s) * 1000,
                deadline_s=deadline_s,
                traceparent=traceparent,
                tenant=self._mesh.tenant,
            )
        except BaseException:
            await self.discard()
            raise

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


def open_body(request: Request, mesh: Mesh) -> Body:
    """The body of a request under this mesh's limits."""
    return Body(request, max_bytes=mesh.settings.max_upload_bytes, timeout_s=mesh.settings.body_timeout_s)


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

"""Pictures out of requests: raw, in the one part of a form, or in many parts.

    body ──▶ (multipart) ──▶ Upload.write ... Upload.complete

Many pictures of one request go the same way one after the other: each is a job of its own as soon as it has come.
"""

import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable

from starlette.requests import Request

from gateway import multipart
from gateway.body import Body
from gateway.mesh import Mesh
from gateway.uploads import Upload
from shared.errors import (
    BadRequest,
    EmptyBody,
    MalformedMultipart,
    MeshError,
    RequestError,
    StoreUnavailable,
    UnsupportedMedia,
)

PART_NAMES = ("image", "file")
BATCH_PART_NAMES = ("images", "images[]", "files", *PART_NAMES)
MAX_PARTS = 8


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


def _picture(body: Body, content_type: str) -> AsyncIterator[multipart.Data]:
    if multipart.is_multipart(content_type):
        return _only_picture(body, content_type)
    if content_type.startswith(("image/", "application/octet-stream")):
        return body.chunks()
    hint = "; with curl use --data-binary @photo.jpg -H 'Content-Type: image/jpeg'" if "urlencoded" in content_type else ""
    raise UnsupportedMedia(f"{content_type!r} is not image/*, application/octet-stream or multipart/form-data{hint}")


async def _only_picture(body: Body, content_type: str) -> AsyncIterator[multipart.Data]:
    """The bytes of the one picture of a multipart body; other parts are passed over."""
    inside, seen = False, False
    async for event in multipart.events(body.chunks(), content_type, max_parts=MAX_PARTS):
        if isinstance(event, multipart.PartBegin):
            inside = event.name in PART_NAMES
            if inside and seen:
                raise MalformedMultipart("more than one picture in a request that takes one")
            seen = seen or inside
        elif inside and not isinstance(event, multipart.PartEnd):
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
            hashed.update(event if isinstance(event, bytes | memoryview) else repr(event).encode())
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
                elif taking is not None and isinstance(event, bytes | memoryview):
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

    async def write(self, chunk: multipart.Data) -> None:
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

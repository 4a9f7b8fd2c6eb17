"""Drawn pictures on request: a child process of its own for each, for decoding a stranger's picture is dangerous here as well.

    request ─▶ job and upload ─▶ child: decode, draw, encode ─▶ kept in Redis for a while

One at a time for each worker, in a process with low priority: jobs come first.
"""

import asyncio
import random
import sys

import msgspec
import structlog

from preprocess_worker.decoder import child_environment
from preprocess_worker.formats import Limits
from shared.errors import BY_CODE, DecoderCrashed, DecodeTimeout, Internal, JobError, MeshError, StoreUnavailable
from shared.messages import Detection, Drawing, ImageInfo, Job
from shared.settings import Settings
from shared.store import Store
from shared.store.renders import Request
from shared.store.uploads import Elsewhere

TAKE_S = 1.0
START_S = 10.0
"""What a child may take to start, on top of the time to decode."""

RETRY_S = 1.0

log = structlog.get_logger()


class Work(msgspec.Struct, frozen=True):
    """All that a child gets, on its standard input."""

    picture: bytes
    image: ImageInfo
    detections: list[Detection]
    drawing: Drawing
    limits: Limits


class Done(msgspec.Struct, frozen=True):
    """All that it gives, on its standard output: the encoded picture, or why there is none."""

    picture: bytes = b""
    code: str = ""
    detail: str = ""


_encode = msgspec.msgpack.Encoder().encode
_done = msgspec.msgpack.Decoder(Done).decode


class Rendering:
    """The loop of one worker."""

    def __init__(self, settings: Settings, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits
        self._timeout_s = settings.decode_timeout_s + START_S

    async def work(self) -> None:
        """Draw what is asked for, for ever."""
        while True:
            try:
                request = await self._store.renders.take(TAKE_S)
                if request is not None:
                    await self._answer(request)
            except StoreUnavailable as error:
                log.warning("render.waits", error=error.detail)
                await asyncio.sleep(random.uniform(0, RETRY_S))  # noqa: S311 - jitter needs no secrecy
            except MeshError as error:
                log.warning("render.lost", error=error.detail)  # whoever waits asks again

    async def _answer(self, request: Request) -> None:
        try:
            await self._store.renders.put(request, await self._outcome(request))
        except Elsewhere:
            await asyncio.sleep(random.uniform(0, RETRY_S))  # noqa: S311 - as above
            await self._store.renders.pass_on(request)

    async def _outcome(self, request: Request) -> bytes | MeshError:
        try:
            job, upload = await self._store.renders.subject(request)
            return await self._draw(job, upload, request.drawing)
        except (StoreUnavailable, Elsewhere):
            raise
        except MeshError as error:
            return error
        except Exception:
            log.exception("render.failed", job=request.job_id)
            return Internal("the picture could not be drawn")

    async def _draw(self, job: Job, upload: bytes, drawing: Drawing) -> bytes:
        """Have a child draw one picture.

        Raises:
            JobError: what the child says of the picture.
            DecodeTimeout, DecoderCrashed: it took too long, or the child died of it.
        """
        if job.image is None:
            raise Internal("the job does not say how large its picture is")
        work = Work(upload, job.image, job.detections or [], drawing, self._limits)
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "preprocess_worker.render_child",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=child_environment(),
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                said, _ = await child.communicate(_encode(work))
        except TimeoutError:
            raise DecodeTimeout(f"drawing took longer than {self._timeout_s:g} s") from None
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        try:
            done = _done(said)
        except msgspec.DecodeError:
            raise DecoderCrashed("the decoder died while it drew the picture") from None
        if done.code:
            raise BY_CODE.get(done.code, JobError)(done.detail)
        return done.picture

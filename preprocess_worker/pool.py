"""A pool of decoder children: each picture gets one of its own, and a child that dies of it is replaced behind the scenes."""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any, Self

import structlog

from preprocess_worker.areas import Place, TensorAreas
from preprocess_worker.decoder import Decoded, Decoder, DecoderGone
from preprocess_worker.formats import Limits
from preprocess_worker.wire import Engine
from shared import metrics
from shared.store.upload_files import FoundFile

RETRY_LEAST_S, RETRY_MOST_S = 0.2, 10.0

log = structlog.get_logger()


class DecoderPool:
    """As many decoders as `size`. Use as an async context manager.

    A decoder is replaced when it dies, when a picture takes longer than `timeout_s`, and after about `lifetime_images`
    pictures (spread by a fifth, so that the children do not all go at once), against whatever libraries leak.
    """

    def __init__(
        self,
        size: int,
        timeout_s: float,
        limits: Limits,
        *,
        lifetime_images: int = 5_000,
        areas: TensorAreas | None = None,
    ) -> None:
        self.size = size
        self.areas = areas or TensorAreas()
        self.restarts = 0
        """How many decoders died or were killed, apart from those at the end of their life."""
        self._timeout_s = timeout_s
        self._limits = limits
        self._lifetime_images = lifetime_images
        # The one used last comes first: its memory is warm, and pages of the others stay untouched.
        self._idle: asyncio.LifoQueue[Decoder] = asyncio.LifoQueue()
        self._lifetimes: dict[Decoder, float] = {}
        self._aging: set[Decoder] = set()
        self._successors: list[Decoder] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    async def __aenter__(self) -> Self:
        # A task group, so that when one does not start the others do not stay behind.
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.size):
                    group.create_task(self._start_idle())
        except BaseException as error:
            await self._end_all()
            if isinstance(error, BaseExceptionGroup):
                raise error.exceptions[0] from None
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._end_all()

    @property
    def pids(self) -> list[int]:
        """Process IDs of the living children."""
        return [decoder.pid for decoder in self._lifetimes]

    @property
    def engine(self) -> Engine | None:
        """What decodes in the children."""
        return next((decoder.engine for decoder in self._lifetimes), None)

    async def decode(
        self, picture: bytes | FoundFile, input_width: int, input_height: int, *, header_only: bool = False
    ) -> Decoded:
        """Decode one picture into a model's input of this size, waiting for a free decoder if need be.

        With `header_only` pictures that track D can decode are only looked at.

        The caller gives the tensor's place back to `areas`, or hands it on.

        Raises:
            CorruptImage, UnsupportedFormat, TooManyPixels, SideTooLong: the picture is at fault.
            DecodeTimeout: it took longer than the pool's timeout, counted from when a decoder had it.
            DecoderCrashed: the decoder died of it.
        """
        while True:
            decoder = await self._idle.get()
            place = decoded = None
            try:
                if decoder.usable:
                    place = self.areas.lease(input_width * input_height * 3)
                    tensor = self.areas.view(place)
                    decoded = await decoder.decode(
                        picture, input_width, input_height, self._timeout_s, place, tensor, header_only=header_only
                    )
                    return decoded
            except DecoderGone:
                continue
            finally:
                self._give_back(decoder, None if decoded else place)

    def _give_back(self, decoder: Decoder, unused: Place | None) -> None:
        if self._closing:
            return
        if not decoder.usable:
            self.restarts += 1
            metrics.DECODER_RESTARTS.inc()
            log.warning("decoder.replaced", decoder_pid=decoder.pid, decoded_images=decoder.decoded_images)
            self._run(self._replace(decoder, unused))
            return
        if unused:
            self.areas.give_back(unused)
        if decoder.decoded_images >= self._lifetimes[decoder]:
            if self._successors:
                self._idle.put_nowait(self._successors.pop())
                self._run(self._end(decoder))
                return
            if decoder not in self._aging:  # it goes on until its successor is ready
                self._aging.add(decoder)
                self._run(self._start_successor())
        self._idle.put_nowait(decoder)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start(self) -> Decoder:
        decoder = await Decoder.start(self._limits, self.areas)
        self._lifetimes[decoder] = self._lifetime_images * random.uniform(0.8, 1.2)  # noqa: S311 - no secrecy needed
        return decoder

    async def _start_idle(self) -> None:
        self._idle.put_nowait(await self._start())

    async def _start_successor(self) -> None:
        self._successors.append(await self._start_surely())

    async def _replace(self, decoder: Decoder, unused: Place | None) -> None:
        await self._end(decoder)
        if unused:  # not before: the child may have written there until it was gone
            self.areas.give_back(unused)
        self._idle.put_nowait(await self._start_surely())

    async def _start_surely(self) -> Decoder:
        retry_s = RETRY_LEAST_S
        while True:
            try:
                return await self._start()
            except (DecoderGone, OSError) as error:
                log.error("decoder.not_started", error=str(error), retry_s=retry_s)  # noqa: TRY400 - the line says it all
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, RETRY_MOST_S)

    async def _end(self, decoder: Decoder) -> None:
        await decoder.end()
        self._lifetimes.pop(decoder, None)
        self._aging.discard(decoder)

    async def _end_all(self) -> None:
        await asyncio.gather(*(self._end(decoder) for decoder in list(self._lifetimes)))
        self.areas.close()

"""A decoder child as its parent sees it: started, asked for one picture at a time, ended."""

import asyncio
import contextlib
import os
import socket
import sys

import msgspec

from preprocess_worker import wire
from preprocess_worker.areas import Place, TensorAreas, memfd
from preprocess_worker.formats import Limits
from shared.errors import BY_CODE, DecoderCrashed, DecodeTimeout, JobError
from shared.messages import Affine, ImageInfo, Placement
from shared.store.upload_files import FoundFile

START_S = 30.0


class DecoderGone(Exception):
    """The child died before it was given the picture, or does not start. The picture is not to blame."""


class Decoded(msgspec.Struct, frozen=True):
    """A letterboxed picture: `tensor` is uint8 RGB, HWC; `decode_ms` is the time that decoding itself took.

    The tensor stays where it is until its `place` is given back.
    """

    image: ImageInfo
    placement: Placement
    tensor: bytes | memoryview
    decode_ms: float
    place: Place | None = None
    affine: Affine | None = None
    """Set where the picture was only looked at: there is no tensor then, and track D decodes it with this."""


class Decoder:
    """One child. `usable` is false once it failed or was left in mid-picture; then it can only be ended."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self._process = process
        self._control = control
        self._pictures = wire.Area(memfd("pictures"))
        self._usable = False
        self.decoded_images = 0
        self.engine: wire.Engine | None = None
        """What decodes in the child, as it said when it started."""

    @classmethod
    async def start(cls, limits: Limits, areas: TensorAreas) -> "Decoder":
        """Start a child and wait until it is ready.

        Raises:
            DecoderGone: it does not start.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "preprocess_worker.decoder_child",
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env=child_environment(),
                )
            except BaseException:
                ours.close()
                raise
        decoder = cls(process, ours)
        try:
            await decoder._greet(limits, areas)
        except BaseException:
            await decoder.end()
            raise
        return decoder

    @property
    def pid(self) -> int:
        """The child's process ID."""
        return self._process.pid

    @property
    def usable(self) -> bool:
        """Whether it waits for a picture."""
        return self._usable and self._process.returncode is None

    async def decode(
        self,
        picture: bytes | FoundFile,
        input_width: int,
        input_height: int,
        timeout_s: float,
        place: Place,
        tensor: memoryview,
        *,
        header_only: bool = False,
    ) -> Decoded:
        """Decode one picture to a place, which `tensor` shows. As long as the child lives it may write there.

        With `header_only` pictures that track D can decode are only looked at.

        Raises:
            JobError: what the child says of the picture, as `decoding.decode_into`.
            DecodeTimeout, DecoderCrashed: it took too long, or the child died of it; the decoder is no longer usable.
            DecoderGone: the child was dead before.
        """
        is_file = isinstance(picture, FoundFile)
        size_bytes = picture.size_bytes if is_file else len(picture)
        if not is_file:
            self._pictures.view(size_bytes)[:] = picture
        self._usable = False
        request = wire.Request(size_bytes, input_width, input_height, place.area, place.offset, header_only, is_file)
        try:
            # One packet at a time is under way, so there is always room for it.
            socket.send_fds(self._control, [wire.pack(request)], [picture.descriptor] if is_file else [])
        except OSError:
            raise DecoderGone("the decoder died while it had nothing to do") from None
        try:
            async with asyncio.timeout(timeout_s):
                reply = await self._receive()
        except TimeoutError:
            raise DecodeTimeout(f"decoding took longer than {timeout_s:g} s") from None
        except EOFError:
            raise DecoderCrashed("the decoder died while it decoded the picture") from None
        self._usable = True
        self.decoded_images += 1
        if reply.image is None or reply.placement is None:
            raise BY_CODE.get(reply.code, JobError)(reply.detail)
        return Decoded(reply.image, reply.placement, tensor, reply.decode_ms, place, reply.affine)

    async def end(self) -> None:
        """Kill the child, which has nothing to lose, and wait until it is gone."""
        self._usable = False
        if self._control.fileno() != -1:
            self._control.close()
            os.close(self._pictures.descriptor)
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()

    async def _greet(self, limits: Limits, areas: TensorAreas) -> None:
        tensors = areas.descriptors()
        try:
            socket.send_fds(self._control, [wire.pack(wire.Hello(limits))], [self._pictures.descriptor, *tensors])
            async with asyncio.timeout(START_S):
                self.engine = (await self._receive()).engine
        except (OSError, EOFError, TimeoutError) as error:
            raise DecoderGone(f"a decoder does not start ({type(error).__name__})") from None
        finally:
            for descriptor in tensors:
                os.close(descriptor)
        self._usable = True

    async def _receive(self) -> wire.Reply:
        try:
            packet = await asyncio.get_running_loop().sock_recv(self._control, wire.PACKET_BYTES)
        except ConnectionResetError:  # unlike an end in mid-picture, this says that our packet was never read
            raise DecoderGone("the decoder died before it took the picture") from None
        if not packet:
            raise EOFError
        return wire.unpack_reply(packet)


def child_environment() -> dict[str, str]:
    """The environment of a process that parses pictures."""
    # The settings hold secrets (the store's password), and the child is where hostile bytes are parsed.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    return ours | {"VIPS_BLOCK_UNTRUSTED": "1", "VIPS_CONCURRENCY": "1", "MALLOC_ARENA_MAX": "2"}

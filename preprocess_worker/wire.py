"""What a pool and a decoder child say to each other: one msgpack message per packet of a socket pair.

    parent ──Hello + the descriptors of all areas──▶ child
    parent ◀──Ready── child
    parent ──Request──▶ child ──Reply──▶ parent        one at a time, until the parent closes its end

Pictures and tensors do not travel here but lie in areas of shared memory: one of pictures for each child, and those of tensors,
which all children of a worker have in common (`preprocess_worker.areas`). A large upload that is a file is read there: its
descriptor comes with the request.
"""

import mmap
import os

import msgspec

from preprocess_worker.formats import Limits
from shared.messages import Affine, ImageInfo, Placement

PACKET_BYTES = 65_536


class Hello(msgspec.Struct, frozen=True):
    """The first packet. It carries the file descriptors of the picture area and of the tensor areas, in this order."""

    limits: Limits


class Request(msgspec.Struct, frozen=True):
    """Decode the first `picture_bytes` of the picture area into an input of this size at `offset` of a tensor area.

    `is_file`: of the file whose descriptor comes along, not of the area.

    `header_only`: track D will decode it; reading its header is enough, unless it is one that D would show otherwise.
    """

    picture_bytes: int
    input_width: int
    input_height: int
    area: int = 0
    offset: int = 0
    header_only: bool = False
    is_file: bool = False


class Engine(msgspec.Struct, frozen=True):
    """What decodes in a child: libvips' version, and whether its vector code runs on this processor."""

    libvips: str
    has_simd: bool


class Reply(msgspec.Struct, frozen=True):
    """The child is ready (`engine` alone set), has decoded (`image` and `placement` set), or refuses (`code`, `detail` set)."""

    decode_ms: float = 0.0
    image: ImageInfo | None = None
    placement: Placement | None = None
    affine: Affine | None = None
    code: str = ""
    detail: str = ""
    engine: Engine | None = None


pack = msgspec.msgpack.Encoder().encode
unpack_hello = msgspec.msgpack.Decoder(Hello).decode
unpack_request = msgspec.msgpack.Decoder(Request).decode
unpack_reply = msgspec.msgpack.Decoder(Reply).decode


def mapped(descriptor: int, size_bytes: int) -> memoryview:
    """A file's bytes, read-only; closes the descriptor.

    Raises:
        ValueError: the file is shorter.
    """
    try:
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        return memoryview(mmap.mmap(descriptor, size_bytes, flags=flags, prot=mmap.PROT_READ))
    finally:
        os.close(descriptor)


class Area:
    """Memory shared with children: a file, mapped anew when it has grown."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory: mmap.mmap | None = None

    def view(self, size_bytes: int) -> memoryview:
        """The first bytes. Only the parent grows the file, always before it asks for that much."""
        if self._memory is None or len(self._memory) < size_bytes:
            if os.fstat(self.descriptor).st_size < size_bytes:
                # By powers of two, so that pictures of growing size do not remap each time; untouched pages cost nothing.
                os.ftruncate(self.descriptor, 1 << max(size_bytes - 1, 1 << 20).bit_length())
            self._memory = mmap.mmap(self.descriptor, os.fstat(self.descriptor).st_size)
        return memoryview(self._memory)[:size_bytes]

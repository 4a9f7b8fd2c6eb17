"""One decoder child: `python -m preprocess_worker.decoder_child FD`, where FD is its end of the pool's socket pair.

It decodes one picture at a time, so a picture that kills or hangs libvips takes no other picture with it. It holds no
connection and no secret, and ends when its parent ends or closes the socket.
"""

import math
import os
import resource
import signal
import socket
import sys
import time

from preprocess_worker import decoding, wire
from shared.errors import MeshError
from shared.parent import die_with_parent

BASE_BYTES = 2 << 30
BYTES_PER_PIXEL = 64
"""Address space: what libraries, thread stacks and the shared areas take, and eight 16-bit copies with alpha of the largest
picture. Ordinary decoding of 50 MP stays far below it; a decoder that runs away is stopped before the host swaps."""

CPU_S = 60
"""Of one picture. The parent's timeout comes long before; this holds when the parent itself is stopped."""


def serve(control: socket.socket) -> None:
    """Say hello, then decode until the parent closes its end."""
    packet, descriptors, _, _ = socket.recv_fds(control, wire.PACKET_BYTES, 3)
    if not packet:
        return
    limits = wire.unpack_hello(packet).limits
    pictures, *tensors = (wire.Area(descriptor) for descriptor in descriptors)
    decoding.prepare(limits)
    most_bytes = BASE_BYTES + limits.max_pixels * BYTES_PER_PIXEL
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    control.send(wire.pack(wire.Reply(engine=wire.Engine(*decoding.engine()))))
    while True:
        packet, files, _, _ = socket.recv_fds(control, wire.PACKET_BYTES, 1)
        if not packet:
            return
        request = wire.unpack_request(packet)
        control.send(wire.pack(_answer(request, limits, _picture(request, pictures, files), tensors)))


def _picture(request: wire.Request, pictures: wire.Area, files: list[int]) -> memoryview:
    return wire.mapped(files[0], request.picture_bytes) if request.is_file else pictures.view(request.picture_bytes)


def _answer(request: wire.Request, limits: decoding.Limits, picture: memoryview, tensors: list[wire.Area]) -> wire.Reply:
    width, height = request.input_width, request.input_height
    end = request.offset + width * height * 3
    limit_cpu(CPU_S)
    started = time.perf_counter()
    try:
        if request.header_only and (seen := decoding.look_at(picture, width, height, limits)):
            image, placement, affine = seen
            return wire.Reply(image=image, placement=placement, affine=affine)
        tensor = tensors[request.area].view(end)[request.offset :]
        image, placement = decoding.decode_into(picture, width, height, limits, tensor)
    except MeshError as error:
        return wire.Reply(code=error.code, detail=error.detail)
    return wire.Reply(decode_ms=(time.perf_counter() - started) * 1000, image=image, placement=placement)


def limit_cpu(seconds: int) -> None:
    """Have the kernel end this process (SIGXCPU) once it has used so much more of a core than it has by now."""
    used_s = math.ceil(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used_s + seconds, resource.RLIM_INFINITY))


def main(descriptor: int) -> None:
    """Tie this process to its parent, give up what it does not need, and serve."""
    # A parent that is gone already shows as the end of the socket.
    die_with_parent(os.getppid())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGINT, signal.SIGTERM):
        # Sent to the whole group by terminals and supervisors; the parent decides when the picture in hand is the last.
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as control:
        try:
            serve(control)
        except (BrokenPipeError, ConnectionResetError):
            return  # the parent is gone


if __name__ == "__main__":
    main(int(sys.argv[1]))

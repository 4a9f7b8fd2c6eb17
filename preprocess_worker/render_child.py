"""One drawn picture: `python -m preprocess_worker.render_child`, work on standard input, the picture on standard output.

    bytes ─▶ decoded, upright, scaled (`decoding.decode_into`) ─▶ frames and labels (`shared.drawing`) ─▶ encoded

Limited and alone like a decoder child; what it decodes is a stranger's, what it encodes is plain pixels.
"""

import io
import math
import os
import resource
import sys

import msgspec
from PIL import Image

from preprocess_worker import decoding
from preprocess_worker.decoder_child import BASE_BYTES, BYTES_PER_PIXEL, CPU_S, limit_cpu
from preprocess_worker.rendering import Done, Work
from shared.drawing import annotate
from shared.errors import MeshError
from shared.messages import Box, Detection
from shared.parent import die_with_parent

NICE = 5
QUALITY = 90

_SAVING = {
    "jpeg": {"quality": QUALITY, "subsampling": 0},
    "webp": {"quality": QUALITY, "method": 2},
    "png": {"compress_level": 4},
}
"""Labels are small red and blue edges, which halved colour resolution would smear."""


def render(work: Work) -> bytes:
    """The encoded picture with its detections.

    Raises:
        JobError: the picture cannot be decoded; see `decoding.decode_into`.
    """
    ratio = min(work.drawing.max_side / max(work.image.width, work.image.height), 1.0)
    width, height = (max(math.ceil(side * ratio), 1) for side in (work.image.width, work.image.height))
    pixels = bytearray(width * height * 3)
    _, placement = decoding.decode_into(work.picture, width, height, work.limits, memoryview(pixels))
    canvas = Image.frombuffer("RGB", (width, height), pixels).crop(
        (
            round(placement.pad_x),
            round(placement.pad_y),
            round(placement.pad_x + work.image.width * placement.scale_x),
            round(placement.pad_y + work.image.height * placement.scale_y),
        )
    )
    annotate(canvas, [_scaled(found, placement.scale_x, placement.scale_y) for found in work.detections])
    encoded = io.BytesIO()
    canvas.save(encoded, work.drawing.format, **_SAVING[work.drawing.format])
    return encoded.getvalue()


def _scaled(found: Detection, scale_x: float, scale_y: float) -> Detection:
    box = found.box
    scaled = Box(box.x1 * scale_x, box.y1 * scale_y, box.x2 * scale_x, box.y2 * scale_y)
    return msgspec.structs.replace(found, box=scaled)


def main() -> None:
    """Give up what it does not need, draw, and say what came of it."""
    die_with_parent(os.getppid())
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    work = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Work)
    decoding.prepare(work.limits)
    most_bytes = BASE_BYTES + work.limits.max_pixels * BYTES_PER_PIXEL
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    limit_cpu(CPU_S)
    try:
        done = Done(render(work))
    except MeshError as error:
        done = Done(code=error.code, detail=error.detail)
    sys.stdout.buffer.write(msgspec.msgpack.encode(done))


if __name__ == "__main__":
    main()

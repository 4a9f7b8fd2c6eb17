"""The quick way of the most common picture: an 8-bit JPEG in YCbCr or grey. The only module that knows libjpeg-turbo and cv2.

    bytes ─▶ libjpeg-turbo (shrunk by 2, 4 or 8 on load) ─▶ bilinear resize into the letterbox ─▶ upright

The pixels are written where they are wanted, without a picture in between. Whatever is unusual - other colours, damage, a
warning of the decoder - is left to `decoding`, which takes its time and says what is wrong. docs/decisions/0002 has the
measurements.
"""

from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from shared.letterbox import GREY, Letterbox

Pixels = npt.NDArray[np.uint8]

COLOURS = frozenset({"YCbCr", "Gray"})
"""What libjpeg-turbo turns into RGB as libvips does; CMYK needs more care."""

UPRIGHT: Mapping[int, Callable[[Pixels], Pixels]] = {
    1: lambda lying: lying,
    2: lambda lying: lying[:, ::-1],
    3: lambda lying: lying[::-1, ::-1],
    4: lambda lying: lying[::-1],
    5: lambda lying: lying.transpose(1, 0, 2),
    6: lambda lying: lying.transpose(1, 0, 2)[:, ::-1],
    7: lambda lying: lying.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda lying: lying.transpose(1, 0, 2)[::-1],
}
"""EXIF orientation (2.32, 4.6.4) -> a view of the pixels [height, width, 3] turned upright."""

KEPT_BYTES = 16 << 20
"""A decoded picture up to this size goes into memory that is kept: fresh pages cost as much as decoding into them."""

cv2.setNumThreads(1)  # one picture at a time, and a process per core


class JpegDecoder:
    """Decodes with memory that it keeps from picture to picture."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def decode_into(
        self, data: bytes | memoryview, size: tuple[int, int], orientation: int, shrink: int, box: Letterbox, out: memoryview
    ) -> bool:
        """Decode a JPEG whose lying `size` (width, height) and orientation are known into the letterboxed input `out`.

        `shrink` is 1, 2, 4 or 8. False: it is not for this way, and `out` holds nothing of use.
        """
        width, height = size
        try:
            if simplejpeg.decode_jpeg_header(data)[2] not in COLOURS:
                return False
            wanted = -(-height // shrink), -(-width // shrink)
            picture = self._decoded(data, *wanted)
        except ValueError:
            return False
        if picture.shape[:2] != wanted:
            return False
        tensor = np.frombuffer(out, np.uint8).reshape(box.input_height, box.input_width, 3)
        inside = blank_border(tensor, box)
        if orientation == 1:
            _resize(picture, size, shrink, inside)
        else:
            lying = np.empty((box.width, box.height, 3) if orientation >= 5 else inside.shape, np.uint8)
            _resize(picture, size, shrink, lying)
            inside[:] = UPRIGHT[orientation](lying)
        return True

    def _decoded(self, data: bytes | memoryview, height: int, width: int) -> Pixels:
        wanted_bytes = height * width * 3
        buffer = None
        if wanted_bytes <= KEPT_BYTES:
            if len(self._kept) < wanted_bytes:
                self._kept = bytearray(wanted_bytes)
            buffer = self._kept
        return simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, buffer=buffer, strict=True)


def blank_border(tensor: npt.NDArray[Any], box: Letterbox) -> Pixels:
    """Paint the border grey; returns the view of the picture's place [height, width, 3]."""
    right, bottom = box.left + box.width, box.top + box.height
    tensor[: box.top] = tensor[bottom:] = GREY
    tensor[box.top : bottom, : box.left] = tensor[box.top : bottom, right:] = GREY
    return tensor[box.top : bottom, box.left : right]


def _resize(picture: Pixels, size: tuple[int, int], shrink: int, out: Pixels) -> None:
    """Bilinear between pixel centres, without a low-pass before it: what the models were trained on."""
    height, width = out.shape[:2]
    if size[0] % shrink == size[1] % shrink == 0:
        cv2.resize(picture, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)
        return
    # The decoder rounds up: its last column or row stands for less than `shrink` pixels, so sides are no measure of scale.
    scale_x, scale_y = size[0] / width / shrink, size[1] / height / shrink
    matrix = np.array([[scale_x, 0, scale_x / 2 - 0.5], [0, scale_y, scale_y / 2 - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cv2.warpAffine(picture, matrix, (width, height), dst=out, flags=flags, borderMode=cv2.BORDER_REPLICATE)

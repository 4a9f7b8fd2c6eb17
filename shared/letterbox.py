"""The geometry of a letterbox, once: how a picture is fitted into a model's input, and boxes are mapped back.

The rounding is that of Ultralytics' `LetterBox` (`auto=False, scaleup=True, center=True`): the scaled sides are rounded
to whole pixels, and half a pixel less than half is put before the picture (`round(x - 0.1)`), the rest behind it.
No pixels are touched here; `preprocess_worker.decoding` does that.
"""

import msgspec

from shared.messages import Affine, Placement

GREY = 114
"""The value of the border, as the models were trained with."""


class Letterbox(msgspec.Struct, frozen=True):
    """Sizes and offsets in pixels of the model's input. The scaled picture covers `width` x `height` at `left`, `top`."""

    width: int
    height: int
    left: int
    top: int
    input_width: int
    input_height: int
    placement: Placement


def fit(image_width: int, image_height: int, input_width: int, input_height: int) -> Letterbox:
    """Fit an upright picture into the model's input, aspect kept, border split evenly."""
    ratio = min(input_height / image_height, input_width / image_width)
    width = min(max(round(image_width * ratio), 1), input_width)
    height = min(max(round(image_height * ratio), 1), input_height)
    left = round((input_width - width) / 2 - 0.1)
    top = round((input_height - height) / 2 - 0.1)
    # The scale that the pixels really got, after rounding: mapping boxes back with `ratio` would be off by up to half a
    # pixel of the input, which is many pixels of a large original.
    placement = Placement(width / image_width, height / image_height, float(left), float(top))
    return Letterbox(width, height, left, top, input_width, input_height, placement)


def to_original(
    box: tuple[float, float, float, float], placement: Placement, image_width: int, image_height: int
) -> tuple[float, float, float, float]:
    """Map a box (x1, y1, x2, y2) from input pixels to pixels of the upright original, clipped to it."""
    x1, y1, x2, y2 = box
    return (
        min(max((x1 - placement.pad_x) / placement.scale_x, 0.0), float(image_width)),
        min(max((y1 - placement.pad_y) / placement.scale_y, 0.0), float(image_height)),
        min(max((x2 - placement.pad_x) / placement.scale_x, 0.0), float(image_width)),
        min(max((y2 - placement.pad_y) / placement.scale_y, 0.0), float(image_height)),
    )


_UPRIGHT_TO_STORED: dict[int, tuple[int, int, int, int, int, int]] = {
    1: (1, 0, 0, 0, 1, 0),
    2: (-1, 0, 1, 0, 1, 0),
    3: (-1, 0, 1, 0, -1, 1),
    4: (1, 0, 0, 0, -1, 1),
    5: (0, 1, 0, 1, 0, 0),
    6: (0, 1, 0, -1, 0, 1),
    7: (0, -1, 1, -1, 0, 1),
    8: (0, -1, 1, 1, 0, 0),
}
"""EXIF orientation (2.32, 4.6.4) -> x = a*u + b*v + c, y = d*u + e*v + f, from shares of the upright picture's sides (u, v) to
shares of the stored one's."""


def to_stored(box: Letterbox, stored_width: int, stored_height: int, orientation: int) -> Affine:
    """The affine that leads from a pixel of the input to one of the picture as it is stored, both with centres at halves."""
    a, b, c, d, e, f = _UPRIGHT_TO_STORED[orientation]
    u, v = 1 / box.width, 1 / box.height  # one pixel of the input, as a share of the picture
    return (
        a * u * stored_width, b * v * stored_width, (c - a * box.left * u - b * box.top * v) * stored_width,
        d * u * stored_height, e * v * stored_height, (f - d * box.left * u - e * box.top * v) * stored_height,
    )  # fmt: skip

"""Detections drawn onto pixels: a frame and a label for each, in a colour of its class. Needs Pillow; reads no file."""

import colorsys

from PIL import Image, ImageDraw, ImageFont

from shared.messages import Detection

_GOLDEN_RATIO = 0.618033988749895

Area = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels."""


def annotate(canvas: Image.Image, detections: list[Detection]) -> None:
    """Draw detections (boxes in pixels of `canvas`) in place; the most confident is drawn last, on top."""
    pen = ImageDraw.Draw(canvas)
    line_px = max(round(min(canvas.size) / 200), 2)
    font = ImageFont.load_default(max(round(min(canvas.size) / 28), 11))
    taken: list[Area] = []
    for found in reversed(detections):
        colour = colour_of(found.class_id)
        box = found.box
        pen.rectangle((box.x1, box.y1, max(box.x2, box.x1), max(box.y2, box.y1)), outline=colour, width=line_px)
    for found in detections:
        text = f"{found.label} {found.confidence:.2f}"
        _label(pen, canvas.size, found, text, font, taken)


def colour_of(class_id: int) -> tuple[int, int, int]:
    """A colour for a class; neighbouring numbers lie far apart on the colour wheel."""
    red, green, blue = colorsys.hsv_to_rgb((class_id * _GOLDEN_RATIO) % 1, 0.85, 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)


def _label(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    found: Detection,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    taken: list[Area],
) -> None:
    """Put a label at its box's upper edge, or as near to it as it hides no other label."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 6
    x = min(max(found.box.x1, 0), max(size[0] - width, 0))
    y = found.box.y1 - height if found.box.y1 >= height else found.box.y1
    area = free_place((x, y, x + width, y + height), taken, size[1])
    taken.append(area)
    colour = colour_of(found.class_id)
    pen.rectangle(area, fill=colour)
    dark = sum(share * part for share, part in zip((0.299, 0.587, 0.114), colour, strict=True)) < 140
    pen.text((area[0] + 3 - left, area[1] + 3 - top), text, fill="white" if dark else "black", font=font)


def free_place(wanted: Area, taken: list[Area], canvas_height: int) -> Area:
    """The place of this size, above or below the wanted one or there, that is nearest to it and overlaps none that is taken.

    Where the whole column is full it is the wanted one.
    """
    x1, y, x2, bottom = wanted
    height = bottom - y
    column = [area for area in taken if area[0] < x2 and area[2] > x1]
    beside = [at for _, top, _, end in column for at in (end, top - height)]
    for at in sorted([y, *beside], key=lambda at: abs(at - y)):
        within = at == y or 0 <= at <= canvas_height - height
        if within and all(at >= end or at + height <= top for _, top, _, end in column):
            return x1, at, x2, at + height
    return wanted

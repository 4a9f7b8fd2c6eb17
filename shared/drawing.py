"""Detections drawn onto pixels: a frame and a label for each, in a colour of its class. Needs Pillow; reads no file."""

import colorsys

from PIL import Image, ImageDraw, ImageFont

from shared.messages import Detection

_GOLDEN_RATIO = 0.618033988749895


def annotate(canvas: Image.Image, detections: list[Detection]) -> None:
    """Draw detections (boxes in pixels of `canvas`) in place; the most confident is drawn last, on top."""
    pen = ImageDraw.Draw(canvas)
    line_px = max(round(min(canvas.size) / 200), 2)
    font = ImageFont.load_default(max(round(min(canvas.size) / 28), 11))
    taken: list[tuple[float, float, float, float]] = []
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
    taken: list[tuple[float, float, float, float]],
) -> None:
    """Put a label at its box's upper edge, moved down until it hides no other label."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 6
    x = min(max(found.box.x1, 0), max(size[0] - width, 0))
    y = found.box.y1 - height if found.box.y1 >= height else found.box.y1
    for x1, y1, x2, y2 in sorted(taken, key=lambda area: area[1]):
        if x < x2 and x + width > x1 and y < y2 and y + height > y1 and y2 + height <= size[1]:
            y = y2
    taken.append((x, y, x + width, y + height))
    colour = colour_of(found.class_id)
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    dark = sum(share * part for share, part in zip((0.299, 0.587, 0.114), colour, strict=True)) < 140
    pen.text((x + 3 - left, y + 3 - top), text, fill="white" if dark else "black", font=font)

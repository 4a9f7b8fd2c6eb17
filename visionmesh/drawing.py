"""Pictures drawn to files: read upright, annotated (`shared.drawing`), written."""

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from shared.drawing import annotate, colour_of
from shared.messages import Detection

__all__ = ["DrawingError", "annotate", "colour_of", "draw"]


class DrawingError(Exception):
    """The picture cannot be read or written. The message is one line."""


def draw(picture: Path, detections: list[Detection], to: Path) -> None:
    """Write `picture`, upright, with its detections to `to`; the suffix chooses the format.

    Raises:
        DrawingError: a file cannot be read or written.
    """
    try:
        with Image.open(picture) as opened:
            canvas = ImageOps.exif_transpose(opened).convert("RGB")
        annotate(canvas, detections)
        to.parent.mkdir(parents=True, exist_ok=True)
        canvas.save(to)
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise DrawingError(f"{picture}: {error}") from None

"""The pictures that are sent: files of the user's, or JPEGs made of the package's photos."""

import io
from pathlib import Path

from PIL import Image, ImageOps

PHOTOS = Path(__file__).parents[1] / "photos"
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif"})
QUALITY = 88
"""JPEG quality at which 810x1080 pixels of our photos take about 140 KB, as a phone's picture of that size does."""

PHOTO_SIDE = 1000
"""A larger picture is laid out of tiles about this large: one photo blown up would be smoother than a camera's, and decode
quicker."""


class NoPictures(ValueError):
    """There is nothing to send. The message is one line."""


def load(paths: list[Path], *, at_most: int) -> list[bytes]:
    """The pictures of files and of folders (not their subfolders), at most so many, in order of their names.

    Raises:
        NoPictures: there are none, or one cannot be read.
    """
    files: list[Path] = []
    for path in paths:
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        files += found
    if not files:
        raise NoPictures(f"no picture ({', '.join(sorted(SUFFIXES))}) in {', '.join(map(str, paths))}")
    try:
        return [file.read_bytes() for file in files[:at_most]]
    except OSError as error:
        raise NoPictures(f"{error.filename}: {error.strerror}") from None


def generate(width: int, height: int, *, quality: int = QUALITY) -> list[bytes]:
    """A JPEG of this size in pixels of each photo that comes with the package."""
    return [_jpeg(Image.open(photo).convert("RGB"), width, height, quality) for photo in sorted(PHOTOS.glob("*.png"))]


def _jpeg(photo: Image.Image, width: int, height: int, quality: int) -> bytes:
    columns, rows = (max(round(side / PHOTO_SIDE), 1) for side in (width, height))
    tile = photo.resize((-(-width // columns), -(-height // rows)), Image.Resampling.BICUBIC)
    picture = Image.new("RGB", (width, height))
    for row in range(rows):
        for column in range(columns):
            turned = ImageOps.mirror(tile) if (row + column) % 2 else tile
            picture.paste(turned, (column * tile.width, row * tile.height))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()

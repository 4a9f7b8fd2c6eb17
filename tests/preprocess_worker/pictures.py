"""Pictures that the tests make: a scene whose colours and corners are known, and files of every kind of it."""

import functools
import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from preprocess_worker.formats import Limits

LIMITS = Limits(50_000_000, 16_384, frozenset({"jpeg", "png", "webp", "gif"}))
CORNERS = ((200, 40, 40), (40, 160, 60), (50, 60, 190), (210, 200, 80))
"""Colours of the scene's quarters: top left, top right, bottom left, bottom right."""


def scene(width: int = 320, height: int = 240) -> Image.Image:
    """Four quarters, each of its own colour."""
    picture = Image.new("RGB", (width, height), CORNERS[0])
    picture.paste(CORNERS[1], (width // 2, 0, width, height // 2))
    picture.paste(CORNERS[2], (0, height // 2, width // 2, height))
    picture.paste(CORNERS[3], (width // 2, height // 2, width, height))
    return picture


@functools.cache
def detailed(width: int, height: int) -> Image.Image:
    """A picture with smooth parts, edges and a little noise, as photos have."""
    y, x = np.mgrid[0:height, 0:width].astype("f4")
    waves = np.stack([127 + 100 * np.sin(x / 37 + k) * np.cos(y / (41 + k)) for k in range(3)], axis=-1)
    waves[height // 3 : height // 2, width // 4 : width // 2] = (230, 30, 90)
    noise = 3 * np.random.default_rng(7).standard_normal(waves.shape, dtype=np.float32)
    return Image.fromarray(np.clip(waves + noise, 0, 255).astype("u1"))


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    """A picture as a file's bytes."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG (PNG 1.2, 3.2)."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *, depth: int = 8, colour: int = 0, raw: bytes = b"") -> bytes:
    """A PNG made by hand: `raw` are the scanlines, each after its filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def bilinear(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.float32]:
    """The reference: bilinear between pixel centres, edges repeated, no low-pass; cv2's INTER_LINEAR in floats."""
    rows, columns = pixels.shape[:2]

    def axis(wanted: int, given: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
        at = (np.arange(wanted) + 0.5) * given / wanted - 0.5
        low = np.floor(at).astype(int)
        return np.clip(low, 0, given - 1), np.clip(low + 1, 0, given - 1), (at - low).astype("f4")

    y0, y1, fy = axis(height, rows)
    x0, x1, fx = axis(width, columns)
    values = pixels.astype("f4")
    mixed = values[y0] * (1 - fy)[:, None, None] + values[y1] * fy[:, None, None]
    return mixed[:, x0] * (1 - fx)[None, :, None] + mixed[:, x1] * fx[None, :, None]

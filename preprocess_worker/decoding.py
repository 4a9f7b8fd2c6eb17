"""From the bytes of a picture to the uint8 tensor of a model. The only module that knows pyvips; runs in decoder children.

    header, limits ─┬─ an ordinary JPEG ─▶ jpeg.JpegDecoder, which is quicker
                    └─ all else ─▶ libvips:

    bytes ─▶ format by magic bytes ─▶ header, limits ─▶ pixels (shrunk on load) ─▶ alpha flattened ─▶ bilinear resize
          ─▶ sRGB, 8 bit, 3 bands ─▶ upright ─▶ letterboxed into the caller's memory

Colour and orientation come after the resize, where there are few pixels left; alpha before it, because the colour that hides
under transparent pixels must not bleed into their neighbours. libvips streams all of it, strip by strip.
"""

import contextlib
import ctypes
import importlib
import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyvips

from preprocess_worker.formats import Limits, recognise
from preprocess_worker.jpeg import JpegDecoder, blank_border
from shared.errors import CorruptImage, SideTooLong, TooManyPixels, UnsupportedFormat
from shared.letterbox import GREY, Letterbox, fit, to_stored
from shared.messages import Affine, ImageInfo, Placement

__all__ = ["Limits", "decode_into", "look_at", "prepare", "recognise"]

LOADERS: Mapping[str, tuple[str, str]] = {
    "jpeg": ("jpegload_source", "VipsForeignLoadJpeg"),
    "png": ("pngload_source", "VipsForeignLoadPng"),
    "webp": ("webpload_source", "VipsForeignLoadWebp"),
    "gif": ("gifload_source", "VipsForeignLoadNsgif"),
    "tiff": ("tiffload_source", "VipsForeignLoadTiff"),
    "heif": ("heifload_source", "VipsForeignLoadHeif"),
    "avif": ("heifload_source", "VipsForeignLoadHeif"),
}
"""Format -> (operation that loads it, its class). Loaders are called by name: libvips never chooses one by sniffing."""

PAGED = frozenset({"gif", "webp", "tiff", "heif", "avif"})
"""Formats that may hold several frames; only the first is loaded."""

PLAIN = frozenset({"jpeg", "png"})
PLAIN_COLOURS = frozenset({"srgb", "rgb"})
"""What track D's DALI decodes to the same pixels as we do: 8 bit, three bands, no alpha, no profile but sRGB."""

OVERSAMPLING = 2
"""A decoder may shrink while it decodes as long as each side stays this many times the side that is wanted. With less, the
decoder's box filter shows beside a full decode and bilinear resize (mean 0.9 grey levels at 2 or more, 1.5 at 1.5)."""

_VECTOR_TARGETS = (1 << 61) - 1
"""Highway's targets but for the two that are no vector code, EMU128 and SCALAR (hwy/detect_targets.h)."""

HARMLESS = ("extraneous bytes before marker", "Unknown Adobe color transform", "Warning: unknown JFIF revision")
"""libjpeg's warnings that cameras and phones cause in good pictures; all others mean damage."""

_BILINEAR = pyvips.Interpolate.new("bilinear")
_JPEG = JpegDecoder()


def prepare(limits: Limits) -> None:
    """Set libvips up for this process, once: only the loaders of allowed formats, one thread, no cache."""
    pyvips.block_untrusted_set(True)
    pyvips.operation_block_set("VipsForeignLoad", True)
    for name in limits.formats & LOADERS.keys():
        pyvips.operation_block_set(LOADERS[name][1], False)
    # One picture at a time, and a process per core: more threads would only change places with each other.
    pyvips.concurrency_set(1)  # pyright: ignore[reportAttributeAccessIssue] - it is there, unlike its stub
    pyvips.cache_set_max(0)
    logging.getLogger("pyvips").disabled = True  # what matters of its warnings ends as an error
    if "jpeg" in limits.formats:
        # The first call of an operation asks libvips for its signature; better now than with somebody's picture.
        picture = pyvips.Image.black(64, 64, bands=3).copy(interpretation="srgb").jpegsave_buffer()
        decode_into(picture, 32, 32, limits, memoryview(bytearray(32 * 32 * 3)))


def engine() -> tuple[str, bool]:
    """libvips' version, and whether its vector code runs: it is compiled in, this processor has it, nobody turned it off."""
    version = ".".join(str(pyvips.version(part)) for part in range(3))
    try:
        # pyvips does not show these; they are looked up in what its own module was linked with.
        library = ctypes.CDLL(importlib.import_module("_libvips").__file__)
        targets = library.vips_vector_get_supported_targets
        targets.restype = ctypes.c_int64
        return version, bool(library.vips_vector_isenabled() and targets() & _VECTOR_TARGETS)
    except (ImportError, OSError, AttributeError):  # another build of libvips: not known, so not claimed
        return version, False


def decode_into(
    data: bytes | memoryview, input_width: int, input_height: int, limits: Limits, out: memoryview
) -> tuple[ImageInfo, Placement]:
    """Decode one picture, letterboxed, into `out`: uint8 RGB, HWC, `input_height * input_width * 3` bytes.

    Returns the upright picture's size and format, and where it lies in the input.

    Raises:
        UnsupportedFormat: not a picture, or of a format that is not allowed.
        TooManyPixels, SideTooLong: the header names a size past the limits; no pixel was decoded.
        CorruptImage: the header or the pixels cannot be decoded.
    """
    name = _format(data, limits)
    try:
        header = _load(data, name, "error")
        _check(header, limits)
        box = fit(*_upright(header), input_width, input_height)
        if name != "jpeg" or not _quickly(data, header, box, out):
            _letterbox(_pixels(data, name, header, box), box, out)
    except pyvips.Error as error:
        raise CorruptImage(f"the {name} picture cannot be decoded: {_reason(error)}") from None
    return ImageInfo(*_upright(header), name), box.placement


def look_at(
    data: bytes | memoryview, input_width: int, input_height: int, limits: Limits
) -> tuple[ImageInfo, Placement, Affine] | None:
    """The same from the header alone, with the affine by which track D letterboxes what it decodes; no pixel is decoded.

    `None` for a picture that DALI would refuse or show in other colours than we do: it wants `decode_into`.

    Raises:
        UnsupportedFormat, TooManyPixels, SideTooLong, CorruptImage: as `decode_into`.
    """
    name = _format(data, limits)
    try:
        header = _load(data, name, "error")
    except pyvips.Error as error:
        raise CorruptImage(f"the {name} picture cannot be decoded: {_reason(error)}") from None
    _check(header, limits)
    if name not in PLAIN or header.format != "uchar" or header.bands != 3 or header.interpretation not in PLAIN_COLOURS:
        return None
    if _foreign_profile(header) or header.get_typeof("palette"):
        return None
    box = fit(*_upright(header), input_width, input_height)
    affine = to_stored(box, header.width, header.height, _orientation(header))
    return ImageInfo(*_upright(header), name), box.placement, affine


def _format(data: bytes | memoryview, limits: Limits) -> str:
    name = recognise(data)
    if name is None:
        raise UnsupportedFormat("the bytes are of no picture format that is known here")
    if name not in limits.formats:
        raise UnsupportedFormat(f"{name} is not taken here; taken are {', '.join(sorted(limits.formats))}")
    return name


def _load(data: bytes | memoryview, name: str, fail_on: str, **options: Any) -> Any:
    if name in PAGED:
        options |= {"n": 1, "page": 0}
    source = pyvips.Source.new_from_memory(data)  # without a copy, unlike a load from a buffer
    return pyvips.Operation.call(LOADERS[name][0], source, access="sequential", fail_on=fail_on, **options)


def _check(header: Any, limits: Limits) -> None:
    width, height = header.width, header.height
    if width * height > limits.max_pixels:
        raise TooManyPixels(f"{width}x{height} is {width * height:,} pixels; at most {limits.max_pixels:,} are taken")
    if max(width, height) > limits.max_side:
        raise SideTooLong(f"{width}x{height} has a side over {limits.max_side:,} pixels")


def _orientation(image: Any) -> int:
    value = image.get("orientation") if image.get_typeof("orientation") else 1
    return value if 1 <= value <= 8 else 1


def _upright(image: Any) -> tuple[int, int]:
    # Orientations 5 to 8 (EXIF 2.32, 4.6.4) lie on their side.
    return (image.height, image.width) if _orientation(image) >= 5 else (image.width, image.height)


def _quickly(data: bytes | memoryview, header: Any, box: Letterbox, out: memoryview) -> bool:
    """Decode an ordinary JPEG the quick way; false if it is none."""
    if _foreign_profile(header):
        return False
    size = header.width, header.height
    return _JPEG.decode_into(data, size, _orientation(header), _jpeg_shrink(header, box), box, out)


def _jpeg_shrink(header: Any, box: Letterbox) -> int:
    """By how much the decoder may shrink each side: 1, 2, 4 or 8."""
    shrink = _most_shrink(header, box)
    return min(2 ** int(math.log2(shrink)), 8) if shrink >= 2 else 1


def _most_shrink(header: Any, box: Letterbox) -> float:
    width, height = (box.height, box.width) if _orientation(header) >= 5 else (box.width, box.height)
    return min(header.width / width, header.height / height) / OVERSAMPLING


def _pixels(data: bytes | memoryview, name: str, header: Any, box: Letterbox) -> Any:
    """The picture as it will lie in the letterbox, as bytes, decoded strictly."""
    if name != "jpeg":
        return _upright_rgb(data, name, header, box, "error")
    try:
        # libjpeg only warns of damaged pixels, and goes on with grey.
        return _upright_rgb(data, name, header, box, "warning")
    except pyvips.Error as error:
        if not any(warning in str(error) for warning in HARMLESS):
            raise
        return _upright_rgb(data, name, header, box, "error")


def _upright_rgb(data: bytes | memoryview, name: str, header: Any, box: Letterbox, fail_on: str) -> Any:
    lies = _orientation(header) >= 5
    width, height = (box.height, box.width) if lies else (box.width, box.height)
    shrink = _most_shrink(header, box)
    scale_x, scale_y = width / header.width, height / header.height
    if name == "jpeg" and shrink >= 2:
        factor = _jpeg_shrink(header, box)
        image = _load(data, name, fail_on, shrink=factor)
        # Rounded up by the decoder: the last column may stand for less than `factor` pixels, so the factor itself counts.
        scale_x, scale_y = scale_x * factor, scale_y * factor
    elif name == "webp" and shrink >= 2:
        image = _load(data, name, fail_on, scale=1 / shrink)
        scale_x, scale_y = width / image.width, height / image.height
    else:
        image = _load(data, name, fail_on)
    image = _resized(_opaque(image), width, height, scale_x, scale_y)
    image = _rgb(image)
    if _orientation(header) != 1:
        # Turning asks for rows out of order, which a stream does not have.
        image = image.copy_memory().autorot()
    return image.write_to_memory()


def _opaque(image: Any) -> Any:
    if not image.hasalpha():
        return image
    grey = GREY * 257 if image.format == "ushort" else GREY
    return image.flatten(background=[grey] * (image.bands - 1))


def _resized(image: Any, width: int, height: int, scale_x: float, scale_y: float) -> Any:
    """Bilinear between pixel centres, without a low-pass before it, as cv2's INTER_LINEAR: what the models were trained on."""
    if image.width == width and image.height == height and scale_x == scale_y == 1:
        return image
    return image.affine(
        [scale_x, 0, 0, scale_y],
        interpolate=_BILINEAR,
        oarea=[0, 0, width, height],
        odx=-0.5,
        ody=-0.5,
        idx=0.5,
        idy=0.5,
        extend="copy",
    )


def _rgb(image: Any) -> Any:
    """sRGB with 3 bands of 8 bits."""
    if _foreign_profile(image):
        image = image.copy_memory()  # what fails from here on is the profile, not the picture
        # A profile that is damaged or belongs to another colour space is passed over, as browsers do.
        with contextlib.suppress(pyvips.Error):
            return image.icc_transform("srgb", embedded=True, intent="relative", depth=8).copy_memory()
    if image.interpretation == "cmyk":
        # No profile says which inks these are. Light that all of them let through is what cv2, Pillow and browsers take;
        # libvips would assume a certain press, whose red is (190, 71, 65), at 20 ms more.
        light = image.extract_band(0, n=4).cast("uchar").invert()
        return (light.extract_band(0, n=3) * light.extract_band(3) / 255).rint().cast("uchar").copy(interpretation="srgb")
    if image.interpretation != "srgb":
        image = image.colourspace("srgb")
    if image.bands > 3:
        image = image.extract_band(0, n=3)
    return image if image.format == "uchar" else image.cast("uchar")


def _foreign_profile(image: Any) -> bool:
    """Whether its colours are to be read by a profile of their own."""
    profile = image.get("icc-profile-data") if image.get_typeof("icc-profile-data") else None
    return bool(profile) and not _is_srgb(bytes(profile))


def _is_srgb(profile: bytes) -> bool:
    """Whether a profile calls itself sRGB in its description (ICC.1:2022, 7.3 tag table, 9.2.41 profileDescriptionTag)."""
    for at in range(132, 132 + 12 * min(int.from_bytes(profile[128:132], "big"), 100), 12):
        if profile[at : at + 4] == b"desc":
            offset = int.from_bytes(profile[at + 4 : at + 8], "big")
            text = profile[offset : offset + min(int.from_bytes(profile[at + 8 : at + 12], "big"), 512)]
            return b"sRGB" in text or "sRGB".encode("utf-16-be") in text
    return False


def _letterbox(pixels: Any, box: Letterbox, out: memoryview) -> None:
    tensor = np.frombuffer(out, np.uint8).reshape(box.input_height, box.input_width, 3)
    blank_border(tensor, box)[:] = np.frombuffer(pixels, np.uint8).reshape(box.height, box.width, 3)


def _reason(error: pyvips.Error) -> str:
    lines = [line.strip() for line in str(error.detail).splitlines() if line.strip()]
    return lines[0][:200] if lines else "damaged"

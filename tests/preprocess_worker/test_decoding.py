import io
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from preprocess_worker import decoding
from preprocess_worker.formats import Limits
from shared.errors import CorruptImage, SideTooLong, TooManyPixels, UnsupportedFormat
from shared.letterbox import GREY, fit
from shared.messages import ImageInfo, Placement
from tests.preprocess_worker.pictures import CORNERS, LIMITS, bilinear, detailed, encode, png, scene

PHOTOS = Path(__file__).parents[2] / "visionmesh" / "photos"
WIDE = Limits(LIMITS.max_pixels, LIMITS.max_side, LIMITS.formats | {"tiff", "avif"})


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> None:
    decoding.prepare(WIDE)


def decode(
    data: bytes, width: int = 64, height: int = 64, limits: Limits = LIMITS
) -> tuple[ImageInfo, Placement, NDArray[np.uint8]]:
    out = bytearray(b"\xee" * (width * height * 3))
    image, placement = decoding.decode_into(data, width, height, limits, memoryview(out))
    return image, placement, np.frombuffer(out, "u1").reshape(height, width, 3)


def inside(tensor: NDArray[np.uint8], image: ImageInfo) -> NDArray[np.uint8]:
    box = fit(image.width, image.height, tensor.shape[1], tensor.shape[0])
    border = np.ones(tensor.shape[:2], bool)
    border[box.top : box.top + box.height, box.left : box.left + box.width] = False
    assert (tensor[border] == GREY).all()
    return tensor[box.top : box.top + box.height, box.left : box.left + box.width]


def corners(data: bytes, limits: Limits = LIMITS) -> list[tuple[int, ...]]:
    image, _, tensor = decode(data, limits=limits)
    picture = inside(tensor, image)
    down, across = picture.shape[0] // 4, picture.shape[1] // 4
    return [tuple(int(v) for v in picture[y, x]) for y in (down, 3 * down) for x in (across, 3 * across)]


def assert_scene(data: bytes, tolerance: int, limits: Limits = LIMITS) -> None:
    difference = np.abs(np.array(corners(data, limits)) - np.array(CORNERS))
    assert difference.max() <= tolerance, corners(data, limits)


# --- colours --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [("JPEG", {"quality": 95}, 5), ("PNG", {}, 0), ("WEBP", {"quality": 95}, 6), ("WEBP", {"lossless": True}, 0),
     ("TIFF", {}, 0), ("AVIF", {"quality": 95}, 6)],
)  # fmt: skip
def test_formats(kind: str, options: dict[str, object], tolerance: int) -> None:
    data = encode(scene(), kind, **options)
    assert_scene(data, tolerance, WIDE)
    assert decode(data, limits=WIDE)[0] == ImageInfo(320, 240, kind.lower())


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette(kind: str) -> None:
    assert_scene(encode(scene().quantize(8), kind), 2)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_grey(kind: str) -> None:
    data = encode(Image.new("L", (100, 80), 77), kind, quality=100)
    assert set(corners(data)) <= {(v, v, v) for v in (76, 77, 78)}


def test_one_bit() -> None:
    assert corners(encode(Image.new("1", (50, 50), 1), "PNG"))[0] == (255, 255, 255)


def test_16_bit_grey_and_rgb() -> None:
    grey = b"".join(b"\x00" + b"\x4d\x4d" * 100 for _ in range(80))
    assert set(corners(png(100, 80, depth=16, colour=0, raw=grey))) == {(77, 77, 77)}
    rgb = b"".join(b"\x00" + b"\xc8\xc8\x28\x28\x32\x32" * 100 for _ in range(80))
    assert set(corners(png(100, 80, depth=16, colour=2, raw=rgb))) == {(200, 40, 50)}


def test_16_bit_alpha() -> None:
    raw = b"".join(b"\x00" + b"\xc8\xc8\x28\x28\x32\x32\x00\x00" * 100 for _ in range(80))
    assert set(corners(png(100, 80, depth=16, colour=6, raw=raw))) == {(GREY, GREY, GREY)}


def test_cmyk() -> None:
    assert_scene(encode(scene().convert("CMYK"), "JPEG", quality=95), 5)


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGBA"), ("PNG", "LA"), ("WEBP", "RGBA")])
def test_alpha_is_flattened_on_grey(kind: str, mode: str) -> None:
    picture = Image.new("RGBA", (64, 64), (255, 0, 255, 0)).convert(mode)
    opaque = Image.new("RGBA", (32, 64), (200, 200, 200, 255)).convert(mode)
    picture.paste(opaque, (0, 0))
    _, _, tensor = decode(encode(picture, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert np.abs(tensor[:, :31].astype(int) - 200).max() <= 1
    assert np.abs(tensor[:, 33:].astype(int) - GREY).max() <= 1


def test_transparent_palette() -> None:
    picture = Image.new("P", (64, 64), 0)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    assert set(corners(encode(picture, "PNG", transparency=0))) == {(GREY, GREY, GREY)}


def test_icc_profile_is_applied() -> None:
    # A profile whose red and blue are swapped is told apart from one that is ignored.
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.find(b"rXYZ"), profile.find(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    while (at := profile.find("sRGB".encode("utf-16-be"))) >= 0:
        profile[at : at + 8] = "swap".encode("utf-16-be")
    while (at := profile.find(b"sRGB built")) >= 0:
        profile[at : at + 4] = b"swap"
    data = encode(Image.new("RGB", (64, 64), (230, 40, 40)), "PNG", icc_profile=bytes(profile))
    r, _, b = corners(data)[0]
    assert b > 200 > 80 > r


def test_srgb_and_damaged_profiles_change_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert_scene(encode(scene(), "PNG", icc_profile=srgb), 0)
    assert_scene(encode(scene(), "PNG", icc_profile=b"not a profile" * 20), 0)


# --- geometry -------------------------------------------------------------------------------------------------------

TURNED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation -> how an upright picture lies in the file; 6 is undone by turning clockwise."""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    method = TURNED[orientation]
    lying = scene() if method is None else scene().transpose(method)
    data = encode(lying, kind, exif=exif, quality=95)
    assert_scene(data, 8)
    assert decode(data)[0] == ImageInfo(320, 240, kind.lower())


def test_large_turned_jpeg_agrees_with_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = detailed(1501, 1003)
    _, _, straight = decode(encode(upright, "JPEG", quality=95), 200, 200)
    image, _, turned = decode(encode(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif), 200, 200)
    assert (image.width, image.height) == (1501, 1003)
    assert np.abs(straight.astype(int) - turned).mean() < 2


@pytest.mark.parametrize("size", [(1, 1), (16_384, 1), (1, 16_384), (16_384, 8), (3, 5), (64, 64), (63, 64)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
def test_odd_sizes(size: tuple[int, int], kind: str) -> None:
    image, _, tensor = decode(encode(Image.new("RGB", size, (200, 40, 40)), kind))
    assert (image.width, image.height) == size
    assert np.abs(inside(tensor, image).astype(int) - (200, 40, 40)).max() <= 4


def test_placement_is_that_of_the_letterbox() -> None:
    _, placement, _ = decode(encode(scene(810, 1080), "PNG"), 640, 640)
    assert placement == fit(810, 1080, 640, 640).placement


@pytest.mark.parametrize("size", [(320, 240), (810, 1080), (2003, 1501), (1001, 4007)])
@pytest.mark.parametrize(("kind", "tolerance"), [("PNG", 0.3), ("JPEG", 2.0), ("WEBP", 2.5)])
def test_agrees_with_a_full_decode_and_bilinear_resize(size: tuple[int, int], kind: str, tolerance: float) -> None:
    data = encode(detailed(*size), kind, quality=92, compress_level=1)
    with Image.open(io.BytesIO(data)) as file:
        full = np.asarray(file.convert("RGB"))
    image, _, tensor = decode(data, 320, 320)
    picture = inside(tensor, image)
    error = np.abs(picture - bilinear(full, picture.shape[1], picture.shape[0]))
    assert error.mean() < tolerance
    if kind == "PNG":
        assert error.max() <= 1


@pytest.mark.parametrize("photo", ["astronaut", "chelsea", "coffee"])
def test_photos_agree_with_the_reference(photo: str) -> None:
    data = (PHOTOS / f"{photo}.png").read_bytes()
    with Image.open(PHOTOS / f"{photo}.png") as file:
        full = np.asarray(file.convert("RGB"))
    image, _, tensor = decode(data, 300, 300)
    picture = inside(tensor, image)
    assert np.abs(picture - bilinear(full, picture.shape[1], picture.shape[0])).max() <= 1


def test_tall_pictures_are_not_slow() -> None:
    data = encode(Image.new("RGB", (300, 16_384), (1, 2, 3)), "PNG")
    started = time.perf_counter()
    decode(data, 640, 640)
    assert time.perf_counter() - started < 1


# --- bad days -------------------------------------------------------------------------------------------------------


def test_first_frame_only() -> None:
    frames = [Image.new("RGB", (40, 30), (i % 250, 255 - i % 250, 10)) for i in range(1000)]
    gif = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    image, _, tensor = decode(gif)
    assert (image.width, image.height) == (40, 30)
    assert np.abs(inside(tensor, image).astype(int) - (0, 255, 10)).max() <= 3


def test_first_frame_of_animated_webp() -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in CORNERS]
    image, _, tensor = decode(encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True))
    assert (image.width, image.height) == (40, 30)
    assert np.abs(inside(tensor, image).astype(int) - CORNERS[0]).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_truncated(kind: str, share: float) -> None:
    data = encode(detailed(640, 480), kind)
    with pytest.raises(CorruptImage):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_garbage_after_a_good_header(kind: str) -> None:
    data = encode(detailed(640, 480), kind)
    garbage = np.random.default_rng(3).bytes(len(data) - 1000)
    with pytest.raises(CorruptImage):
        decode(data[:1000] + garbage)


def test_garbage_in_a_jpeg_that_ends_well() -> None:
    data = encode(detailed(640, 480), "JPEG")
    garbage = np.random.default_rng(3).bytes(len(data) // 2).replace(b"\xff", b"\xfe")
    with pytest.raises(CorruptImage):
        decode(data[: len(data) // 2] + garbage + b"\xff\xd9")


def test_what_cameras_do_wrong_is_forgiven() -> None:
    data = encode(scene(), "JPEG", quality=95)
    assert_scene(data[:-2] + b"\x00" * 12 + b"\xff\xd9", 5)
    assert_scene(data + b"trailing bytes" * 100, 5)


@pytest.mark.parametrize("data", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\x00\x00\x00\x00WEBP"])
def test_only_magic_bytes(data: bytes) -> None:
    with pytest.raises(CorruptImage):
        decode(data)


def test_limits_are_checked_in_the_header() -> None:
    started = time.perf_counter()
    with pytest.raises(TooManyPixels, match="935820x854554"):
        decode(png(935_820, 854_554))
    with pytest.raises(SideTooLong, match="16,384"):
        decode(png(2, 1_048_577, raw=b"\x00\x00\x00" * 1_048_577))
    with pytest.raises(TooManyPixels):
        decode(encode(Image.new("RGB", (101, 100)), "GIF"), limits=Limits(10_000, 16_384, LIMITS.formats))
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize(
    "data",
    [
        b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", b"%PDF-1.7\n1 0 obj\n",
        b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", b"P6 1 1 255\nabc", b"BM" + b"\x00" * 60,
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(UnsupportedFormat):
        decode(data)


def test_formats_that_are_off_are_refused() -> None:
    with pytest.raises(UnsupportedFormat, match="tiff is not taken here; taken are gif, jpeg, png, webp"):
        decode(encode(scene(), "TIFF"))

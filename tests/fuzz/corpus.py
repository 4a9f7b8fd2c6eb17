"""What is fed besides the suites (`tests.fuzz.suites`): pictures made here, and mutants of both."""

import io
import random
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageCms

from preprocess_worker.formats import recognise
from tests.preprocess_worker.pictures import detailed, encode, png, scene

LARGEST_SEED_BYTES = 100_000
"""Larger files make slow mutants that find nothing more."""


def made() -> dict[str, bytes]:
    """A small file of every kind that our formats know."""
    plain, busy = scene(160, 120), detailed(200, 150)
    turned = Image.Exif()
    turned[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    frames = [plain.quantize(16), scene(160, 120).rotate(90).quantize(16)]
    more = {"save_all": True, "append_images": frames[1:]}
    return {
        "jpeg": encode(busy, "JPEG"),
        "jpeg progressive": encode(busy, "JPEG", progressive=True),
        "jpeg grey": encode(busy.convert("L"), "JPEG"),
        "jpeg cmyk": encode(plain.convert("CMYK"), "JPEG"),
        "jpeg turned, profiled": encode(plain, "JPEG", exif=turned, icc_profile=profile),
        "png": encode(plain, "PNG"),
        "png alpha": encode(busy.convert("RGBA"), "PNG"),
        "png palette": encode(plain.quantize(8), "PNG", transparency=1),
        "png 16 bit": encode(Image.new("I;16", (40, 30), 40_000), "PNG"),
        "png 1 bit": encode(plain.convert("1"), "PNG"),
        "png profiled": encode(plain, "PNG", icc_profile=profile),
        "png header": png(30_000, 30_000),
        "webp": encode(busy, "WEBP"),
        "webp lossless": encode(plain.convert("RGBA"), "WEBP", lossless=True),
        "webp animated": encode(plain, "WEBP", save_all=True, append_images=[plain.rotate(180)]),
        "gif": encode(plain.quantize(32), "GIF"),
        "gif animated": encode(frames[0], "GIF", **more),
        "tiff": encode(plain, "TIFF"),
        "tiff lzw": encode(plain, "TIFF", compression="tiff_lzw"),
        "tiff jpeg": encode(plain, "TIFF", compression="jpeg"),
        "avif": encode(plain, "AVIF"),
    }


def mutants(seeds: dict[str, bytes], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`count` mutants, the same for the same seed. Each is named by what it was made of."""
    chance = random.Random(seed)
    names = sorted(name for name, data in seeds.items() if 16 <= len(data) <= LARGEST_SEED_BYTES and recognise(data))
    for _ in range(count):
        name = chance.choice(names)
        data = bytearray(seeds[name])
        for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
            how = chance.choice(MUTATIONS)
            if len(data) > 16:
                how(data, chance, seeds[chance.choice(names)])
        yield name, bytes(data)


# --- mutations: (data, chance, another seed) ------------------------------------------------------------------------

INTERESTING = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff")


def _flip_bit(data: bytearray, chance: random.Random, _other: bytes) -> None:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _flip_bit_of_the_head(data: bytearray, chance: random.Random, _other: bytes) -> None:
    data[chance.randrange(min(len(data), 64))] ^= 1 << chance.randrange(8)


def _overwrite(data: bytearray, chance: random.Random, _other: bytes) -> None:
    value = chance.choice(INTERESTING)
    at = chance.randrange(max(len(data) - len(value), 1))
    data[at : at + len(value)] = value


def _randomise(data: bytearray, chance: random.Random, _other: bytes) -> None:
    at = chance.randrange(len(data))
    part = data[at : at + chance.randrange(1, 64)]
    data[at : at + len(part)] = chance.randbytes(len(part))


def _truncate(data: bytearray, chance: random.Random, _other: bytes) -> None:
    del data[chance.randrange(8, len(data)) :]


def _cut_out(data: bytearray, chance: random.Random, _other: bytes) -> None:
    at = chance.randrange(len(data))
    del data[at : at + chance.randrange(1, 256)]


def _repeat(data: bytearray, chance: random.Random, _other: bytes) -> None:
    at = chance.randrange(len(data))
    part = data[at : at + chance.randrange(1, 512)]
    data[at:at] = part * chance.choice((1, 2, 16))


def _splice(data: bytearray, chance: random.Random, other: bytes) -> None:
    at = chance.randrange(len(data))
    data[at:] = other[chance.randrange(len(other)) :]


MUTATIONS = (
    _flip_bit, _flip_bit_of_the_head, _overwrite, _overwrite, _randomise, _truncate, _cut_out, _repeat, _splice
)  # fmt: skip


def thumbnail(photo: Path) -> bytes:
    """A good neighbour: a photo small enough to be sent a thousand times."""
    picture = Image.open(io.BytesIO(photo.read_bytes())).convert("RGB")
    return encode(picture, "JPEG", quality=88)

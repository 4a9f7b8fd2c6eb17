"""Picture formats and what is allowed of a picture. Known to the pool and to the children; no pixel is touched here."""

import msgspec

_ISO_BRANDS = {
    b"avif": "avif",
    b"avis": "avif",
    b"heic": "heif",
    b"heix": "heif",
    b"heim": "heif",
    b"heis": "heif",
    b"hevc": "heif",
    b"hevx": "heif",
}

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"II+\x00", "tiff"),
    (b"MM\x00+", "tiff"),
)


class Limits(msgspec.Struct, frozen=True):
    """What a picture may be, checked in its header before any pixel is decoded. `max_side` is in pixels."""

    max_pixels: int
    max_side: int
    formats: frozenset[str]


def recognise(data: bytes | memoryview) -> str | None:
    """The format that the first bytes show, or `None`. What the sender calls the picture plays no part."""
    head = bytes(data[:64])
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp":
        # ISO 14496-12: box size, `ftyp`, major brand, minor version, compatible brands. A major brand of `mif1` leaves it
        # to the compatible ones to say which codec is meant.
        end = min(int.from_bytes(head[:4], "big"), len(head))
        for at in (8, *range(16, end - 3, 4)):
            if name := _ISO_BRANDS.get(head[at : at + 4]):
                return name
    return None

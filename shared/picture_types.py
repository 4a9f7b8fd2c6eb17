"""Which picture format some bytes begin with. Content types and file names are only what a client believes."""

SNIFF_BYTES = 32
"""How many bytes `recognise` wants to see; fewer are enough for a shorter body."""

_HEIF_BRANDS = {
    b"heic": "heif",
    b"heix": "heif",
    b"mif1": "heif",
    b"msf1": "heif",
    b"heim": "heif",
    b"avif": "avif",
    b"avis": "avif",
}


def recognise(head: bytes) -> str | None:
    """The format's name as in `MESH_FORMATS`, or `None` if it is none that the mesh could decode."""
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff"
    if head[4:8] == b"ftyp":
        return _HEIF_BRANDS.get(head[8:12])
    return None

import pytest

from preprocess_worker.formats import recognise
from tests.preprocess_worker.pictures import encode, scene


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF"])
def test_recognises_by_magic_bytes(kind: str) -> None:
    data = encode(scene(), kind)
    assert recognise(data) == recognise(memoryview(data)) == kind.lower()


def test_brands_of_iso_files() -> None:
    assert recognise(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic") == "heif"
    assert recognise(b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00mif1avif") == "avif"
    assert recognise(b"\x00\x00\x00\x14ftypisom\x00\x00\x00\x00mp41") is None


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7\n", b"RIFF1234WAVE"]
)
def test_others_are_not_recognised(data: bytes) -> None:
    assert recognise(data) is None

"""Pictures that are broken, huge on paper, or odd, through the whole mesh: each ends as it should, its neighbours succeed."""

import io
import struct
import zlib

import httpx
import pytest
from PIL import Image

from tests.conftest import PHOTOS

CAT = (PHOTOS / "chelsea.png").read_bytes()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims this size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def cat() -> Image.Image:
    return Image.open(io.BytesIO(CAT)).convert("RGB")


def detect(http: httpx.Client, body: bytes) -> dict[str, object]:
    answer = http.post("/v1/jobs", content=body, headers={"content-type": "application/octet-stream", "prefer": "wait=20"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def frames(count: int) -> bytes:
    first, *rest = [cat().quantize(64), *(Image.new("P", (451, 300), index % 64) for index in range(count - 1))]
    return encoded(first, "GIF", save_all=True, append_images=rest, loop=0)


JPEG = encoded(cat(), "JPEG", quality=90)

FAILING = {
    "many pixels": (png_header(935_820, 854_554), "too-many-pixels"),
    "long side": (png_header(2, 1_048_577), "side-too-long"),
    "truncated": (JPEG[: len(JPEG) // 2], "corrupt-image"),
    "garbage": (JPEG[:700] + bytes(range(256)) * 40, "corrupt-image"),
    "header only": (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "corrupt-image"),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_bad_picture_fails_alone(http: httpx.Client, name: str) -> None:
    body, code = FAILING[name]
    job = detect(http, body)
    assert (job["status"], job["error"]["code"]) == ("failed", code), job
    assert job["error"]["detail"]
    assert detect(http, CAT)["status"] == "succeeded"


def test_predict_answers_with_the_jobs_problem(http: httpx.Client) -> None:
    answer = http.post("/predict/small", files={"image": ("x.jpg", FAILING["truncated"][0])})
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["code"] == "corrupt-image"
    assert problem["job_id"]


ODD = {
    "grey": encoded(cat().convert("L"), "JPEG", quality=95),
    "cmyk": encoded(cat().convert("CMYK"), "JPEG", quality=95),
    "palette": encoded(cat().quantize(256), "PNG"),
    "alpha": encoded(cat().convert("RGBA"), "PNG"),
    "webp": encoded(cat(), "WEBP", quality=95),
    "many frames": frames(1000),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_picture_of_a_cat_is_a_cat(http: httpx.Client, name: str) -> None:
    job = detect(http, ODD[name])
    assert job["status"] == "succeeded", job
    assert (job["image"]["width"], job["image"]["height"]) == (451, 300)
    assert job["detections"][0]["label"] == "cat"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_in_the_upright_picture(http: httpx.Client, orientation: int) -> None:
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = cat() if undo is None else cat().transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    job = detect(http, encoded(stored, "JPEG", quality=95, exif=exif))
    assert (job["image"]["width"], job["image"]["height"]) == (451, 300)
    (found,) = job["detections"]
    assert found["label"] == "cat"
    assert list(found["box"].values()) == pytest.approx([0, 5, 400, 300], abs=12)


@pytest.mark.parametrize("size", [(1, 1), (16_384, 1), (1, 16_384)])
def test_extreme_sizes_are_decoded(http: httpx.Client, size: tuple[int, int]) -> None:
    job = detect(http, encoded(Image.new("RGB", size, "teal"), "PNG"))
    assert job["status"] == "succeeded"
    assert (job["image"]["width"], job["image"]["height"]) == size

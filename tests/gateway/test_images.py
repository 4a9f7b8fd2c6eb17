"""`GET /v1/jobs/ID/image` on the whole mesh: drawn by a worker, cached, refused where there is nothing to draw."""

import contextlib
import io

import httpx
import pytest
import redis
from PIL import Image, ImageOps

from deploy.local.supervisor import LocalMesh
from tests.conftest import PHOTOS

CUP = (PHOTOS / "coffee.png").read_bytes()


def submit(http: httpx.Client, picture: bytes = CUP, **query: str) -> str:
    answer = http.post(
        "/v1/jobs", params={"keep_upload": "true"} | query, files={"image": picture}, headers={"prefer": "wait=20"}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


@pytest.fixture(scope="module")
def job_id(mesh: LocalMesh) -> str:
    with httpx.Client(base_url=mesh.url, timeout=30) as http:
        return submit(http)


@pytest.mark.parametrize(
    ("query", "kind", "size"),
    [
        ({}, "JPEG", (600, 400)),
        ({"format": "webp", "max_side": 300}, "WEBP", (300, 200)),
        ({"format": "png", "max_side": 4096}, "PNG", (600, 400)),
    ],
)
def test_it_is_drawn_in_each_format(
    http: httpx.Client, job_id: str, query: dict[str, str], kind: str, size: tuple[int, int]
) -> None:
    answer = http.get(f"/v1/jobs/{job_id}/image", params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == f"image/{kind.lower()}"
    with Image.open(io.BytesIO(answer.content)) as drawn:
        assert (drawn.format, drawn.size) == (kind, size)
        drawn.load()


def test_a_large_picture_that_is_kept_as_a_file_is_drawn(http: httpx.Client, mesh: LocalMesh) -> None:
    large = io.BytesIO()
    Image.open(io.BytesIO(CUP)).resize((1500, 1000)).save(large, "PNG")
    job_id = submit(http, large.getvalue())
    (file,) = (mesh.folder / "uploads").glob(f"*/{job_id}")
    assert file.read_bytes() == large.getvalue()
    with contextlib.closing(redis.Redis.from_url(mesh.redis_url)) as client:
        assert client.strlen(f"{{mesh:0}}:upload:{job_id}") < 64, "a pointer"
    answer = http.get(f"/v1/jobs/{job_id}/image", params={"format": "png"})
    assert answer.status_code == 200, answer.text
    with Image.open(io.BytesIO(answer.content)) as drawn:
        assert drawn.size == (1280, 853)


def test_the_frame_lies_on_the_box(http: httpx.Client, job_id: str) -> None:
    box = http.get(f"/v1/jobs/{job_id}").json()["detections"][0]["box"]
    drawn = Image.open(io.BytesIO(http.get(f"/v1/jobs/{job_id}/image", params={"format": "png"}).content)).convert("RGB")
    plain = Image.open(io.BytesIO(CUP)).convert("RGB")
    middle = (box["y1"] + box["y2"]) / 2

    def differs(x: float, y: float) -> bool:
        here = round(x), round(y)
        return max(abs(one - other) for one, other in zip(drawn.getpixel(here), plain.getpixel(here), strict=True)) > 60

    assert any(differs(box["x1"] + step, middle) for step in (-1, 0, 1, 2))
    assert not differs((box["x1"] + box["x2"]) / 2, middle)


def test_it_is_upright(http: httpx.Client) -> None:
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    ImageOps.exif_transpose(Image.open(io.BytesIO(CUP)).convert("RGB")).rotate(90, expand=True).save(turned, "JPEG", exif=exif)
    answer = http.get(f"/v1/jobs/{submit(http, turned.getvalue())}/image")
    assert Image.open(io.BytesIO(answer.content)).size == (600, 400)


def test_a_second_look_is_not_drawn_again(mesh: LocalMesh, http: httpx.Client, job_id: str) -> None:
    first = http.get(f"/v1/jobs/{job_id}/image", params={"max_side": 200})
    with contextlib.closing(redis.Redis.from_url(mesh.redis_url)) as client:
        (kept,) = list(client.keys(f"*:render:{job_id}:jpeg:200"))
        assert 0 < client.ttl(kept) <= 300
        assert client.llen("{mesh:0}:renders") == 0
    assert http.get(f"/v1/jobs/{job_id}/image", params={"max_side": 200}).content == first.content


def test_without_a_picture_or_a_result_it_says_so(http: httpx.Client) -> None:
    forgotten = submit(http, keep_upload="false")
    answer = http.get(f"/v1/jobs/{forgotten}/image")
    assert (answer.status_code, answer.json()["code"]) == (404, "picture-not-kept")
    failed = http.post("/v1/jobs", params={"keep_upload": "true"}, files={"image": CUP[:2000]}, headers={"prefer": "wait=20"})
    answer = http.get(f"/v1/jobs/{failed.json()['id']}/image")
    assert (answer.status_code, answer.json()["code"]) == (409, "no-result")


@pytest.mark.parametrize(
    "query", [{"format": "gif"}, {"max_side": 5000}, {"max_side": 8}, {"max_side": "large"}, {"max_side": 99.5}]
)
def test_what_cannot_be_drawn_is_refused(http: httpx.Client, job_id: str, query: dict[str, str]) -> None:
    answer = http.get(f"/v1/jobs/{job_id}/image", params=query)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-parameter")

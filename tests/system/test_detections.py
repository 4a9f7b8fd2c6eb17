"""The reference detections of the photos, through the whole mesh, on both tracks."""

from typing import Any

import httpx
import pytest

from tests.conftest import PHOTOS

REFERENCE = {
    "chelsea.png": [("cat", 0.976, (0, 5, 400, 306))],
    "coffee.png": [("cup", 0.975, (171, 27, 414, 248)), ("dining table", 0.485, (-1, -40, 597, 472))],
    "astronaut.png": [("person", 0.678, (22, 9, 369, 486))],
}
SIZES = {"chelsea.png": (451, 300), "coffee.png": (600, 400), "astronaut.png": (512, 512)}


def detect(http: httpx.Client, photo: str, model: str) -> dict[str, Any]:
    answer = http.post(
        "/v1/jobs",
        params={"model": model},
        content=(PHOTOS / photo).read_bytes(),
        headers={"content-type": "image/png", "prefer": "wait=20"},
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def iou(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    overlap = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return overlap / (areas - overlap)


@pytest.mark.parametrize("model", ["small", "small_end2end"])
@pytest.mark.parametrize("photo", REFERENCE)
def test_finds_what_the_reference_finds(http: httpx.Client, photo: str, model: str) -> None:
    job = detect(http, photo, model)
    width, height = SIZES[photo]
    assert (job["image"]["width"], job["image"]["height"], job["image"]["format"]) == (width, height, "png")
    assert [found["label"] for found in job["detections"]] == [label for label, _, _ in REFERENCE[photo]]
    for found, (_, confidence, box) in zip(job["detections"], REFERENCE[photo], strict=True):
        clipped = (max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height))
        assert iou(tuple(found["box"].values()), clipped) >= 0.9
        assert abs(found["confidence"] - confidence) <= 0.05


@pytest.mark.parametrize("photo", REFERENCE)
def test_track_c_gives_what_b_gives(http: httpx.Client, photo: str) -> None:
    plain, inside = detect(http, photo, "small"), detect(http, photo, "small_end2end")
    assert (plain["track"], inside["track"]) == ("B", "C")
    assert len(plain["detections"]) == len(inside["detections"])
    for one, other in zip(plain["detections"], inside["detections"], strict=True):
        assert one["label"] == other["label"]
        assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-3)
        assert list(one["box"].values()) == pytest.approx(list(other["box"].values()), abs=0.1)

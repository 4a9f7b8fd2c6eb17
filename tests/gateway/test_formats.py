"""Each result format in JSON and MessagePack, read by the tools it is for: supervision and pycocotools themselves."""

import contextlib
import io
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
import supervision
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.conftest import PHOTOS

COFFEE = (PHOTOS / "coffee.png").read_bytes()
CUP, DINING_TABLE = 47, 67
"""Their COCO categories; the model's classes are 41 and 60."""


@pytest.fixture(scope="module")
def job(mesh) -> dict[str, Any]:
    headers = {"content-type": "image/png", "prefer": "wait=20"}
    answer = httpx.post(f"{mesh.url}/v1/jobs", content=COFFEE, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()


def as_format(http: httpx.Client, job: dict[str, Any], name: str) -> dict[str, Any]:
    """The job in a format, the same in both encodings."""
    path = f"/v1/jobs/{job['id']}"
    plain = http.get(path, params={"format": name}).json()
    packed = http.get(path, params={"format": name}, headers={"accept": "application/msgpack"})
    assert packed.headers["content-type"] == "application/msgpack"
    assert msgspec.msgpack.decode(packed.content) == plain
    return plain


def corners(job: dict[str, Any]) -> np.ndarray:
    return np.array([list(found["box"].values()) for found in job["detections"]])


def test_supervision_takes_the_roboflow_answer_whole(http: httpx.Client, job: dict[str, Any]) -> None:
    detections = supervision.Detections.from_inference(as_format(http, job, "roboflow"))
    assert list(detections.data["class_name"]) == ["cup", "dining table"]
    assert detections.class_id is not None
    assert list(detections.class_id) == [41, 60]
    np.testing.assert_allclose(detections.xyxy, corners(job), atol=0.01)
    np.testing.assert_allclose(detections.confidence, [found["confidence"] for found in job["detections"]], atol=1e-6)


def test_supervision_takes_a_picture_without_objects(http: httpx.Client) -> None:
    headers = {"content-type": "image/png", "prefer": "wait=20"}
    answer = http.post("/v1/jobs", params={"confidence": 1, "format": "roboflow"}, content=COFFEE, headers=headers)
    assert len(supervision.Detections.from_inference(answer.json())) == 0


def test_pycocotools_finds_the_coco_answer_perfect_against_itself(http: httpx.Client, job: dict[str, Any]) -> None:
    results = as_format(http, job, "coco")["detections"]
    assert [result["category_id"] for result in results] == [CUP, DINING_TABLE]
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": job["id"], "width": 600, "height": 400}],
        "categories": [{"id": CUP, "name": "cup"}, {"id": DINING_TABLE, "name": "dining table"}],
        "annotations": [
            {**result, "id": number, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
            for number, result in enumerate(results, 1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):  # its way to tell how it goes
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_the_ultralytics_answer_has_its_names(http: httpx.Client, job: dict[str, Any]) -> None:
    first = as_format(http, job, "ultralytics")["detections"][0]
    assert (first["name"], first["class"]) == ("cup", 41)
    assert set(first["box"]) == {"x1", "y1", "x2", "y2"}


def test_everything_else_of_the_job_is_the_same(http: httpx.Client, job: dict[str, Any]) -> None:
    assert as_format(http, job, "mesh") == job
    for name in ("ultralytics", "roboflow", "coco"):
        other = as_format(http, job, name)
        assert {key: other[key] for key in job if key != "detections"} == {key: job[key] for key in job if key != "detections"}


def test_an_unknown_format_is_named(http: httpx.Client, job: dict[str, Any]) -> None:
    answer = http.get(f"/v1/jobs/{job['id']}", params={"format": "yolo"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-parameter")

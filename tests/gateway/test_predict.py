"""The predecessor's endpoints, as its clients call them."""

import httpx
import pytest

from gateway.routes.predict import pytorch_model
from shared import models
from shared.errors import UnknownModel
from shared.models import Model, Registry
from tests.conftest import PHOTOS

CAT, CUP = ((PHOTOS / name).read_bytes() for name in ("chelsea.png", "coffee.png"))


@pytest.mark.parametrize("model", ["small", "small_trt", "small_end2end", "small_trt_end2end"])
def test_every_spelling_answers(http: httpx.Client, model: str) -> None:
    answer = http.post(f"/predict/{model}", params={"resize": "true", "max_size": 1024}, files={"image": CAT})
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "success"
    assert answer.json()["track"] == ("C" if "end2end" in model else "B")
    assert [found["class"] for found in answer.json()["detections"]] == [15]


@pytest.mark.parametrize("query", [{"resize": "maybe"}, {"max_size": "large"}, {"max_size": 0}, {"max_size": 1.5}])
def test_hints_are_checked(http: httpx.Client, query: dict[str, str]) -> None:
    answer = http.post("/predict/small", params=query, files={"image": CAT})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-parameter")


def test_a_batch_answers_in_order_and_a_bad_picture_fails_alone(http: httpx.Client) -> None:
    files = [("images", CAT), ("images", b"no picture"), ("images", CUP[:2000]), ("images", CUP)]
    answer = http.post("/predict_batch/small", files=files)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert [result["status"] for result in document["results"]] == ["success", "error", "error", "success"]
    assert [result["image_index"] for result in document["results"]] == [0, 1, 2, 3]
    assert document["results"][0]["detections"][0]["class"] == 15
    assert document["results"][3]["detections"][0]["class"] == 41
    assert [document["results"][index]["error"]["code"] for index in (1, 2)] == ["unsupported-media", "corrupt-image"]
    assert (document["status"], document["total_images"], document["failed_images"]) == ("partial", 4, 2)


@pytest.mark.parametrize("path", ["/pytorch/predict/nomodel", "/pytorch/predict_batch/nomodel"])
def test_a_mesh_without_the_model_says_so(http: httpx.Client, path: str) -> None:
    answer = http.post(path, files={"images" if "batch" in path else "image": CAT})
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown-model")
    assert "PyTorch" in answer.json()["detail"]


def test_the_pytorch_sibling_is_found_by_any_spelling() -> None:
    plain = models.load().get("small")
    sibling = Model(name="small_pytorch", track="A", triton_model="small_pytorch", input_width=300, input_height=300)
    registry = Registry({"small": plain, "small_pytorch": sibling}, {"small_trt": "small"})
    assert {pytorch_model(registry, name).name for name in ("small", "small_trt", "small_pytorch")} == {"small_pytorch"}
    with pytest.raises(UnknownModel):
        pytorch_model(Registry({"small": plain}), "small")


def test_connections_are_told(http: httpx.Client) -> None:
    pool = http.get("/connection_pool_info").json()["shared_client_pool"]
    assert pool["active"] is True
    assert pool["connection_count"] >= 2


def test_a_browser_gets_the_page_if_there_is_one(http: httpx.Client) -> None:
    assert http.get("/", headers={"accept": "application/json"}).json()["service"] == "visionmesh"
    answer = http.get("/", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(("text/html", "application/json"))

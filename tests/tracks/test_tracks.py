"""All four tracks side by side under one API, beside a plain reference, under load, and with what each refuses."""

import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from deploy.export import repository
from deploy.local.triton import Triton
from inference_worker.heads import Thresholds
from inference_worker.heads.yolo import yolo
from shared.letterbox import GREY, fit, to_original
from tests.conftest import PHOTOS
from tests.system.test_detections import iou

pytestmark = pytest.mark.tracks

SIDE = 300
NAMES = [file.name for file in sorted(PHOTOS.glob("*.png"))]
ENCODED = ("small_gpu_e2e_streaming", "small_gpu_e2e", "small_gpu_e2e_batch")
LIMITS = {
    "small_pytorch": (0.95, 0.03),
    "small": (0.95, 0.03),
    "small_end2end": (0.95, 0.03),
    **dict.fromkeys(ENCODED, (0.9, 0.05)),
}
"""Model -> least IoU, largest difference of confidence, against the reference."""

CAT = Image.open(PHOTOS / "chelsea.png").convert("RGB")


def reference(photo: Path) -> list[tuple[int, float, tuple[float, ...]]]:
    """Full decode, bilinear letterbox, ONNX Runtime, NMS: class, confidence and box of what is at least 0.5 sure."""
    pixels = np.asarray(Image.open(photo).convert("RGB"))
    height, width = pixels.shape[:2]
    box = fit(width, height, SIDE, SIDE)
    image = np.full((SIDE, SIDE, 3), GREY, np.uint8)
    resized = cv2.resize(pixels, (box.width, box.height), interpolation=cv2.INTER_LINEAR)
    image[box.top : box.top + box.height, box.left : box.left + box.width] = resized
    session = ort.InferenceSession(str(repository.DEFAULT_ONNX), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"images": image.transpose(2, 0, 1)[None].astype(np.float32) / 255})
    (found,) = yolo({"output0": outputs[0]}, [Thresholds(confidence=0.5, iou=0.45, max_detections=100)])
    return [
        (class_id, score, to_original(tuple(corners), box.placement, width, height))
        for corners, score, class_id in zip(*(part.tolist() for part in found), strict=True)
    ]


def detect(http: httpx.Client, model: str, picture: bytes) -> dict[str, Any]:
    answer = http.post("/v1/jobs", params={"model": model}, files={"image": picture}, headers={"prefer": "wait=30"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def wait_until_ready(http: httpx.Client) -> dict[str, bool]:
    """PyTorch is loaded while the others serve already."""
    deadline_s = time.monotonic() + 60
    while True:
        ready = {model["name"]: model["ready"] for model in http.get("/v1/models").json()["models"]}
        if all(ready.values()) or time.monotonic() > deadline_s:
            return ready
        time.sleep(0.1)


def test_all_tracks_are_served_side_by_side(http: httpx.Client) -> None:
    assert wait_until_ready(http) == dict.fromkeys(LIMITS, True)
    tracks = {model["name"]: model["track"] for model in http.get("/v1/models").json()["models"]}
    assert tracks == {"small_pytorch": "A", "small": "B", "small_end2end": "C", **dict.fromkeys(ENCODED, "D")}


@pytest.mark.parametrize("photo", NAMES)
@pytest.mark.parametrize("model", LIMITS)
def test_parity_with_the_reference(http: httpx.Client, model: str, photo: str) -> None:
    job = detect(http, model, (PHOTOS / photo).read_bytes())
    assert job["status"] == "succeeded", job
    least_iou, most_difference = LIMITS[model]
    expected = reference(PHOTOS / photo)
    assert expected
    for class_id, confidence, box in expected:
        close = [
            found
            for found in job["detections"]
            if found["class_id"] == class_id
            and iou(tuple(found["box"].values()), box) >= least_iou
            and abs(found["confidence"] - confidence) <= most_difference
        ]
        assert close, (class_id, confidence, box, job["detections"])


def test_the_predecessors_endpoint_of_track_a(http: httpx.Client) -> None:
    answer = http.post("/pytorch/predict/small", files={"image": saved(CAT, "PNG")})
    assert answer.status_code == 200, answer.text
    assert answer.json()["track"] == "A"
    assert answer.json()["detections"][0]["class"] == 15


@pytest.mark.parametrize("orientation", range(1, 9))
def test_track_d_turns_pictures_upright(http: httpx.Client, orientation: int) -> None:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = CAT.transpose(turns[orientation]) if orientation > 1 else CAT
    job = detect(http, "small_gpu_e2e", saved(stored, "JPEG", quality=95, exif=exif))
    assert job["image"] == {"width": CAT.width, "height": CAT.height, "format": "jpeg"}
    (cat,) = job["detections"]
    assert cat["label"] == "cat"
    assert iou(tuple(cat["box"].values()), (0, 5, 400, 300)) >= 0.9


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {"quality": 95}),
        ("JPEG", "RGB", {"progressive": True}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("WEBP", "RGB", {}),
        ("GIF", "P", {}),
    ],
)
def test_track_d_takes_every_format(http: httpx.Client, kind: str, mode: str, options: dict[str, Any]) -> None:
    """What DALI would not decode as we do is decoded in the worker, and runs on the same ensemble."""
    picture = saved(CAT.convert(mode), kind, **options)
    job, plain = detect(http, "small_gpu_e2e", picture), detect(http, "small", picture)
    assert [found["label"] for found in job["detections"]] == [found["label"] for found in plain["detections"]] == ["cat"]
    (one,), (other,) = job["detections"], plain["detections"]
    assert iou(tuple(one["box"].values()), tuple(other["box"].values())) >= 0.9
    assert abs(one["confidence"] - other["confidence"]) <= 0.05


@pytest.mark.parametrize("size", [(1, 1), (4000, 3000), (16_384, 1)])
def test_track_d_takes_pictures_of_every_size(http: httpx.Client, size: tuple[int, int]) -> None:
    job = detect(http, "small_gpu_e2e", saved(Image.new("RGB", size, (200, 30, 30)), "JPEG"))
    assert job["status"] == "succeeded", job
    assert (job["image"]["width"], job["image"]["height"]) == size


def test_track_d_refuses_by_the_header_and_by_the_pixels(http: httpx.Client) -> None:
    header = bytearray(saved(Image.new("RGB", (20_000, 10)), "PNG"))
    assert detect(http, "small_gpu_e2e", bytes(header))["error"]["code"] == "side-too-long"
    cut = saved(CAT, "JPEG", quality=95)[:20_000]
    assert detect(http, "small_gpu_e2e", cut)["error"]["code"] == "corrupt-image"


@pytest.mark.parametrize("model", [*ENCODED, "small_pytorch"])
def test_batches_form_of_pictures_of_different_length(http: httpx.Client, tracks_triton: Triton, model: str) -> None:
    """And one bad picture among them fails alone."""
    pictures = [saved(CAT.resize((150 + 20 * number, 200)), "JPEG", quality=60 + number) for number in range(31)]
    pictures.insert(10, pictures[0][:3000])
    before = executed(tracks_triton, model)
    with ThreadPoolExecutor(16) as threads:
        jobs = list(threads.map(lambda picture: detect(http, model, picture), pictures))
    bad = jobs.pop(10)
    assert bad["error"]["code"] == "corrupt-image"
    assert {job["status"] for job in jobs} == {"succeeded"}
    assert all(job["detections"][0]["label"] == "cat" for job in jobs)
    mean = len(jobs) / sum(1 / job["batch_size"] for job in jobs)
    count, runs = (now - then for now, then in zip(executed(tracks_triton, model), before, strict=True))
    in_triton = f"; in Triton {count / runs:.2f}" if runs else ""
    print(f"{model}: mean batch size {mean:.2f}{in_triton}")  # noqa: T201 - shown with `pytest -s`
    assert mean > 1.2
    if runs:
        assert count / runs > 1.2


def executed(triton: Triton, model: str) -> tuple[int, int]:
    """How many pictures this tier's preprocess model has done, in how many runs."""
    if model not in ENCODED:
        return 0, 0
    answer = httpx.get(f"http://127.0.0.1:{triton.http_port}/v2/models/{model}_preprocess/stats")
    (stats,) = json.loads(answer.text)["model_stats"]
    return int(stats["inference_count"]), int(stats["execution_count"])

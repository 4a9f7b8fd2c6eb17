"""The two graphs made from the detector, run with ONNX Runtime beside the worker's own heads."""

import io
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from PIL import Image

from deploy.export import graph, repository
from deploy.export.detector import Detector, load
from deploy.export.errors import ExportError
from inference_worker.heads import HEADS, Thresholds
from tests.conftest import PHOTOS

ASKED = Thresholds(confidence=graph.SCORE_THRESHOLD, iou=graph.IOU_THRESHOLD, max_detections=graph.TOP_K)


def run(model: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


@pytest.fixture(scope="module")
def detector() -> Detector:
    return load(repository.DEFAULT_ONNX)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Real photos, squeezed: at this threshold they have many overlapping candidates."""
    photos = [
        Image.open(io.BytesIO(file.read_bytes())).convert("RGB").resize((300, 300)) for file in sorted(PHOTOS.glob("*.png"))
    ]
    return np.stack([np.asarray(photo) for photo in photos])


def test_plain_takes_bytes_and_gives_what_the_detector_gives(detector: Detector, images: np.ndarray) -> None:
    floats = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    session = ort.InferenceSession(detector.model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"images": floats})
    np.testing.assert_allclose(run(graph.plain(detector), images)["output0"], expected, atol=1e-4, rtol=1e-3)


def test_nms_in_the_graph_keeps_what_the_workers_keeps(detector: Detector, images: np.ndarray) -> None:
    plain = HEADS["yolo"](run(graph.plain(detector), images), [ASKED] * 3)
    inside = HEADS["end2end"](run(graph.end2end(detector), images), [ASKED] * 3)
    assert max(len(found.scores) for found in plain) > 3
    for one, other in zip(plain, inside, strict=True):
        assert one.class_ids.tolist() == other.class_ids.tolist()
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-2)


def test_a_picture_does_not_depend_on_its_batch(detector: Detector, images: np.ndarray) -> None:
    served = graph.end2end(detector)
    alone = run(served, images[1:2])
    together = run(served, images)
    count = int(alone["num_dets"][0, 0])
    assert count == together["num_dets"][1, 0]
    np.testing.assert_allclose(alone["det_boxes"][0, :count], together["det_boxes"][1, :count], atol=1e-2)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read"), (b"no onnx", "is not an ONNX file"), (b"", "is not a valid ONNX file")],
)
def test_what_is_no_detector_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "model.onnx"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ExportError, match=said) as caught:
        load(file)
    assert "\n" not in str(caught.value)


def test_another_layout_is_refused(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 10]) for name in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", value[:1], value[1:]))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="its input is"):
        load(tmp_path / "model.onnx")

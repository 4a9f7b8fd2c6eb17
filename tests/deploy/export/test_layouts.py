"""Every layout that is known, from an ONNX file to detections, on small detectors whose findings can be foretold."""

import io
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from PIL import Image

from deploy.export import detector, graph
from deploy.export.detector import load
from deploy.export.errors import ExportError
from deploy.export.reference import Reference
from inference_worker.heads import HEADS, Thresholds
from tests.deploy.export.detectors import FOUND, LABELS, SIDE, Layout, build, picture, save

LAYOUTS: list[Layout] = ["yolov8", "yolov5", "nms-free"]


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "PNG")
    return buffer.getvalue()


def served(model: onnx.ModelProto, head: str, images: np.ndarray) -> list[list[tuple[str, float, tuple[int, ...]]]]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, {"images": images}), strict=True))
    asked = [Thresholds(confidence=0.4, iou=0.45 if head == "yolo" else None, max_detections=100)] * len(images)
    return [
        [
            (LABELS[number], round(float(score), 3), tuple(round(side) for side in box))
            for box, score, number in zip(found.boxes.tolist(), found.scores, found.class_ids, strict=True)
        ]
        for found in HEADS[head](outputs, asked)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_is_recognised_with_its_size_and_labels(tmp_path: Path, layout: Layout) -> None:
    found = load(save(tmp_path, layout))
    assert (found.layout, found.input_width, found.input_height) == (layout, SIDE, SIDE)
    assert (found.labels, found.class_count, found.batch) == (LABELS, 2, 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_variants_find_what_is_there(tmp_path: Path, layout: Layout) -> None:
    known = load(save(tmp_path, layout))
    images = np.stack([np.zeros_like(picture()), picture()])
    assert served(graph.end2end(known), "end2end", images) == [[], FOUND]
    if layout != "nms-free":
        assert served(graph.plain(known), "yolo", images) == [[], FOUND]
    reference = Reference(known).detect(png(), 0.4, 0.45)
    assert [(one.label, round(one.confidence, 3)) for one in reference] == [(label, score) for label, score, _ in FOUND]


def test_without_nms_there_is_no_plain_variant(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="end to end"):
        graph.plain(load(save(tmp_path, "nms-free")))


@pytest.mark.parametrize("layout", ["yolov8", "yolov5"])
def test_for_tensorrt_nms_is_its_plugin(tmp_path: Path, layout: Layout) -> None:
    made = graph.end2end(load(save(tmp_path, layout)), "tensorrt")
    plugin = next(node for node in made.graph.node if node.op_type == "EfficientNMS_TRT")
    assert list(plugin.output) == ["num_dets", "det_boxes", "det_scores", "det_classes"]
    assert [output.name for output in made.graph.output] == list(plugin.output)
    assert not any(node.op_type == "NonMaxSuppression" for node in made.graph.node)


def test_labels_given_win_over_its_own(tmp_path: Path) -> None:
    assert load(save(tmp_path, "yolov8"), labels=["rot", "gruen"]).labels == ["rot", "gruen"]
    assert load(save(tmp_path, "yolov8", labels=None)).labels == ["0", "1"]
    file = tmp_path / "labels.txt"
    file.write_text("one\n\ntwo\n")
    assert detector.read_labels(file) == ["one", "two"]


def _no_batch_first(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


def _half(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def _open_size(model: onnx.ModelProto) -> None:
    for dimension in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_param = "side"


def _elsewhere(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")


def _foreign(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "evil.ops"


def _two_outputs(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("means", TensorProto.FLOAT, ["batch", 3, 2, 2]))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_no_batch_first, "batches of exactly 4"),
        (_half, "not float32"),
        (_open_size, "--input-size"),
        (_elsewhere, "keeps weights in other files"),
        (_foreign, "evil.ops"),
        (_two_outputs, "1 inputs and 2 outputs"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(tmp_path: Path, spoil, said: str) -> None:
    model = build("yolov8")
    spoil(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=said) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_wrong_labels_and_sizes_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, "yolov8")
    with pytest.raises(ExportError, match="2 classes, but 3 labels"):
        load(path, labels=["a", "b", "c"])
    with pytest.raises(ExportError, match="takes 64x64 pixels, not 32x32"):
        load(path, input_size=(32, 32))
    with pytest.raises(ExportError, match="cannot be read"):
        detector.read_labels(tmp_path / "none.txt")

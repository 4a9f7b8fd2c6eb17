"""Small detectors that tests build: their output is a known function of the picture, so what they find can be foretold.

Each looks at the means of the four quarters of the picture, one candidate a quarter: its box is the quarter, its class is 0
where the quarter is rather red and 1 where it is rather green, and its score is how red or green it is (0..1).
"""

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 64
LABELS = ["red", "green"]
Layout = Literal["yolov8", "yolov5", "nms-free"]

_OPSET = 17


def build(layout: Layout, *, labels: list[str] | None = LABELS) -> onnx.ModelProto:
    """A detector of 64x64 pixels in one of the layouts; `labels` go to its metadata as Ultralytics writes them."""
    half = SIDE // 2
    centres = np.array(
        [[x, y, half, half] for y in (half / 2, SIDE - half / 2) for x in (half / 2, SIDE - half / 2)], np.float32
    )
    corners = np.array([[x, y, x + half, y + half] for y in (0, half) for x in (0, half)], np.float32)
    constants = {
        "boxes": (corners if layout == "nms-free" else centres)[None],
        "two": np.array([2]), "zero": np.array([0]), "classes": np.array([1, 2, 4]), "ones_shape": np.array([1, 4, 1]),
        "unit": np.ones((1, 4, 1), np.float32),
        "class_numbers": np.array([[[0.0, 0.0, 1.0, 1.0]]], np.float32).reshape(1, 4, 1),
    }  # fmt: skip
    nodes = [
        # [n, 3, 64, 64] -> means of the quarters [n, 3, 2, 2] -> red and green of the four [n, 2, 4]
        helper.make_node("AveragePool", ["images"], ["means"], kernel_shape=[half, half], strides=[half, half]),
        helper.make_node("Slice", ["means", "zero", "two", "axis_1"], ["red_green"]),
        helper.make_node("Reshape", ["red_green", "flat"], ["scores"]),
        helper.make_node("Shape", ["scores"], ["scores_shape"]),
        helper.make_node("Gather", ["scores_shape", "zero"], ["count"], axis=0),
        helper.make_node("Concat", ["count", "one", "one"], ["repeats"], axis=0),
        helper.make_node("Tile", ["boxes", "repeats"], ["boxes_each"]),
    ]
    constants |= {"axis_1": np.array([1]), "flat": np.array([0, 2, 4]), "one": np.array([1])}
    if layout == "yolov8":
        nodes += [
            helper.make_node("Transpose", ["boxes_each"], ["rows"], perm=[0, 2, 1]),
            helper.make_node("Concat", ["rows", "scores"], ["short"], axis=1),
            # More anchors than rows, as every detector has: the last ones find nothing.
            helper.make_node("Pad", ["short", "padding"], ["output0"]),
        ]
        constants["padding"] = np.array([0, 0, 0, 0, 0, 8])
        shape: list[str | int] = ["batch", 6, 12]
    elif layout == "yolov5":
        nodes += [
            helper.make_node("Transpose", ["scores"], ["classes_by_anchor"], perm=[0, 2, 1]),
            helper.make_node("Tile", ["unit", "repeats"], ["objectness"]),
            helper.make_node("Concat", ["boxes_each", "objectness", "classes_by_anchor"], ["short"], axis=2),
            helper.make_node("Pad", ["short", "padding"], ["output0"]),
        ]
        constants["padding"] = np.array([0, 0, 0, 0, 8, 0])
        shape = ["batch", 12, 7]
    else:
        nodes += [
            helper.make_node("ReduceMax", ["scores"], ["best"], axes=[1], keepdims=1),
            helper.make_node("Transpose", ["best"], ["best_by_anchor"], perm=[0, 2, 1]),
            helper.make_node("ArgMax", ["scores"], ["which"], axis=1, keepdims=1),
            helper.make_node("Cast", ["which"], ["which_f32"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["which_f32"], ["which_by_anchor"], perm=[0, 2, 1]),
            helper.make_node("Concat", ["boxes_each", "best_by_anchor", "which_by_anchor"], ["output0"], axis=2),
        ]
        shape = ["batch", 4, 6]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        layout,
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    if labels is not None:
        model.metadata_props.add(key="names", value=repr(dict(enumerate(labels))))
    onnx.checker.check_model(model)
    return model


def save(folder: Path, layout: Layout, *, labels: list[str] | None = LABELS) -> Path:
    """The same as a file."""
    path = folder / f"{layout}.onnx"
    onnx.save(build(layout, labels=labels), path)
    return path


def picture() -> np.ndarray:
    """64x64: red on the upper left, green on the lower right, black elsewhere."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[: SIDE // 2, : SIDE // 2, 0] = 204
    pixels[SIDE // 2 :, SIDE // 2 :, 1] = 230
    return pixels


FOUND = [("green", 0.902, (32, 32, 64, 64)), ("red", 0.8, (0, 0, 32, 32))]
"""What is on it: label, confidence, corners."""

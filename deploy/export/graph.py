"""From a detector's ONNX export to the graphs that Triton serves. Two of them, with the same input:

    images uint8 [batch, height, width, 3] ──▶ cast, NCHW, 1/255 ──▶ the detector ──▶ output0 f32 [batch, 4+C, P]   (track B)
                                                                          └──▶ best class, NMS, top K ──▶ 4 outputs  (track C)

`output0` is the YOLOv8/YOLO11 layout: rows cx, cy, w, h in input pixels, then a score in 0..1 for each class. Normalisation
is inside, so tensors travel as bytes. NMS follows the worker's rule exactly (an anchor counts for its best class only), so
that C gives what B gives.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

OPSET = 17
TOP_K = 100
SCORE_THRESHOLD = 0.05
"""Below what anybody asks for; a request raises it in the worker."""

IOU_THRESHOLD = 0.45


class ExportError(Exception):
    """The ONNX file cannot be served. The message is one line."""


def load(path: Path) -> ModelProto:
    """Read a detector in the YOLOv8/YOLO11 layout.

    Raises:
        ExportError: the file cannot be read, is no ONNX, or has another layout.
    """
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # noqa: BLE001 - protobuf and the checker raise many kinds, all of which mean the same
        raise ExportError(f"{path}: is not a valid ONNX file ({str(error).splitlines()[0]})") from None
    if len(model.graph.input) != 1 or len(model.graph.output) != 1:
        raise ExportError(f"{path}: has {len(model.graph.input)} inputs and {len(model.graph.output)} outputs, not one each")
    if len(_shape(model.graph.input[0])) != 4 or len(_shape(model.graph.output[0])) != 3:
        raise ExportError(f"{path}: is not a [batch, 3, height, width] -> [batch, 4+classes, anchors] detector")
    return model


def input_size(model: ModelProto) -> tuple[int, int]:
    """Width and height of the input in pixels."""
    _, _, height, width = _shape(model.graph.input[0])
    return width, height


def class_count(model: ModelProto) -> int:
    """How many classes the output has."""
    return _shape(model.graph.output[0])[1] - 4


def plain(model: ModelProto) -> ModelProto:
    """Track B: uint8 NHWC in, `output0` as it is."""
    served = ModelProto()
    served.CopyFrom(model)
    graph = served.graph
    width, height = input_size(model)
    was = graph.input[0].name
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == was:
                node.input[index] = "pixels"
    front = [
        helper.make_node("Cast", ["images"], ["images_f32"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["images_f32"], ["images_nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["images_nchw", "per_grey_level"], ["pixels"]),
    ]
    nodes = [*front, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.append(numpy_helper.from_array(np.asarray(1 / 255, np.float32), "per_grey_level"))
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", height, width, 3]))
    _rename_output(served)
    onnx.checker.check_model(served)
    return served


def end2end(model: ModelProto) -> ModelProto:
    """Track C: NMS in the graph, the four outputs of TensorRT's EfficientNMS."""
    served = plain(model)
    graph = served.graph
    constants = {
        "top_k": np.int64(TOP_K), "iou": np.float32(IOU_THRESHOLD), "least_score": np.float32(SCORE_THRESHOLD),
        "half": np.float32(0.5), "zero": np.float32(0), "minus_one": np.int32(-1), "halves": np.array([2, 2]),
        "corner_axis": np.array([2]), "all_but_class": np.array([0, 2]), "axis_1": np.array([1]),
        "box_from": np.array([0]), "box_to": np.array([4]), "class_from": np.array([4]), "class_to": np.array([2**31 - 1]),
    }  # fmt: skip
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    graph.node.extend(_nms_nodes())
    del graph.output[:]
    graph.output.extend(
        [
            helper.make_tensor_value_info("num_dets", TensorProto.INT32, ["batch", 1]),
            helper.make_tensor_value_info("det_boxes", TensorProto.FLOAT, ["batch", "top", 4]),
            helper.make_tensor_value_info("det_scores", TensorProto.FLOAT, ["batch", "top"]),
            helper.make_tensor_value_info("det_classes", TensorProto.INT32, ["batch", "top"]),
        ]
    )
    onnx.checker.check_model(served)
    return served


def _nms_nodes() -> list[NodeProto]:
    """From `output0` to the four outputs.

    An anchor keeps one class, so the kept scores fit a dense [batch, anchors] plane: NonMaxSuppression's triples are
    scattered into it, and TopK of the plane sorts and cuts each image on its own, whatever its neighbours have.
    """

    def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
        return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)

    return [
        node("Slice", "output0 box_from box_to axis_1", "boxes_cxcywh"),
        node("Slice", "output0 class_from class_to axis_1", "scores"),
        node("Transpose", "boxes_cxcywh", "boxes_by_anchor", perm=[0, 2, 1]),
        node("Split", "boxes_by_anchor halves", "centers sizes", axis=2),
        node("Mul", "sizes half", "half_sizes"),
        node("Sub", "centers half_sizes", "least_corners"),
        node("Add", "centers half_sizes", "most_corners"),
        node("Concat", "least_corners most_corners", "boxes", axis=2),
        node("ReduceMax", "scores", "best_scores", axes=[1], keepdims=1),
        node("Equal", "scores best_scores", "is_best"),
        node("Where", "is_best scores zero", "scores_of_best"),
        node("ArgMax", "scores", "best_class", axis=1, keepdims=0),
        node("NonMaxSuppression", "boxes scores_of_best top_k iou least_score", "selected"),
        node("GatherND", "scores_of_best selected", "selected_scores"),
        node("Gather", "selected all_but_class", "selected_anchors", axis=1),
        node("Shape", "best_class", "plane_shape"),
        node("ConstantOfShape", "plane_shape", "empty_plane"),
        node("ScatterND", "empty_plane selected_anchors selected_scores", "kept_scores"),
        node("Gather", "plane_shape axis_1", "anchor_count", axis=0),
        node("Min", "anchor_count top_k", "top_count"),
        node("TopK", "kept_scores top_count", "det_scores top_anchors", axis=1, largest=1, sorted=1),
        node("Greater", "det_scores zero", "is_detection"),
        node("Cast", "is_detection", "ones", to=TensorProto.INT32),
        node("ReduceSum", "ones axis_1", "num_dets", keepdims=1),
        node("GatherElements", "best_class top_anchors", "top_classes", axis=1),
        node("Cast", "top_classes", "top_classes_i32", to=TensorProto.INT32),
        node("Where", "is_detection top_classes_i32 minus_one", "det_classes"),
        node("Unsqueeze", "top_anchors corner_axis", "anchor_index"),
        node("GatherND", "boxes anchor_index", "top_boxes", batch_dims=1),
        node("Unsqueeze", "is_detection corner_axis", "is_detection_box"),
        node("Where", "is_detection_box top_boxes zero", "det_boxes"),
    ]


def _rename_output(model: ModelProto) -> None:
    was = model.graph.output[0].name
    if was != "output0":
        model.graph.output[0].name = "output0"
        for node in model.graph.node:
            node.input[:] = ["output0" if name == was else name for name in node.input]
            node.output[:] = ["output0" if name == was else name for name in node.output]


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    return [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]

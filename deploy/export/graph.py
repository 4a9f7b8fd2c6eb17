"""From a detector to the graphs that Triton serves. All take `images` uint8 [batch, height, width, 3]:

    images ──▶ cast, NCHW, 1/255 ──▶ the detector ──▶ `output0` f32 [batch, 4 + classes, P]                     (tracks A, B)
                                          └──▶ best class, NMS, top K ──▶ num_dets, det_boxes, det_scores, det_classes  (C, D)

Normalisation is inside, so tensors travel as bytes. Whatever its layout was, a served `output0` has that of YOLOv8, so the
workers need one head. NMS follows the worker's rule exactly (an anchor counts for its best class only), so that C gives what
B gives; for TensorRT it is the EfficientNMS plugin, with the same four outputs.
"""

from typing import Any, Literal

import numpy as np
import onnx
import onnx.compose
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from deploy.export.detector import Detector
from deploy.export.errors import ExportError

TOP_K = 100
SCORE_THRESHOLD = 0.05
"""Below what anybody asks for; a request raises it in the worker."""

IOU_THRESHOLD = 0.45

Nms = Literal["onnx", "tensorrt"]


def plain(detector: Detector) -> ModelProto:
    """NMS in the worker: uint8 NHWC in, `output0` out.

    Raises:
        ExportError: the detector has no plain output (layout `nms-free`).
    """
    if detector.layout == "nms-free":
        raise ExportError("a detector without NMS has no plain output to serve; it is served end to end")
    served = _with_front(detector)
    if detector.layout == "yolov5":
        _add(served, _yolov5_nodes(), _YOLOV5_CONSTANTS)
        served.graph.output[0].CopyFrom(
            helper.make_tensor_value_info("output0", TensorProto.FLOAT, ["batch", 4 + detector.class_count, None])
        )
    onnx.checker.check_model(served)
    return served


def end2end(detector: Detector, nms: Nms = "onnx") -> ModelProto:
    """NMS in the graph: uint8 NHWC in, the four outputs of TensorRT's EfficientNMS out."""
    batch = detector.batch or "batch"
    if detector.layout == "nms-free":
        served = _with_front(detector)
        _add(served, _nms_free_nodes(), _NMS_FREE_CONSTANTS)
    else:
        served = plain(detector)
        nodes = _onnx_nms_nodes() if nms == "onnx" else _tensorrt_nms_nodes()
        _add(served, [*_split_nodes(), *nodes], _SPLIT_CONSTANTS | (_NMS_CONSTANTS if nms == "onnx" else {}))
    del served.graph.output[:]
    served.graph.output.extend(
        [
            helper.make_tensor_value_info("num_dets", TensorProto.INT32, [batch, 1]),
            helper.make_tensor_value_info("det_boxes", TensorProto.FLOAT, [batch, "top", 4]),
            helper.make_tensor_value_info("det_scores", TensorProto.FLOAT, [batch, "top"]),
            helper.make_tensor_value_info("det_classes", TensorProto.INT32, [batch, "top"]),
        ]
    )
    if nms == "onnx" or detector.layout == "nms-free":
        onnx.checker.check_model(served)  # the plugin's node is unknown to the checker
    return served


def _with_front(detector: Detector) -> ModelProto:
    """The detector behind a front that takes bytes; its output is named `output0`, or `raw` where it is to be changed."""
    # Whatever names a stranger's file uses, they are not ours.
    served = onnx.compose.add_prefix(detector.model, "detector/")
    graph = served.graph
    fed = {value.name for value in graph.initializer}
    was = next(value.name for value in graph.input if value.name not in fed)
    front = [
        helper.make_node("Cast", ["images"], ["images_f32"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["images_f32"], ["images_nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["images_nchw", "per_grey_level"], [was]),
    ]
    result = "output0" if detector.layout == "yolov8" else "raw"
    nodes = [*front, *graph.node, helper.make_node("Identity", [graph.output[0].name], [result])]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.append(numpy_helper.from_array(np.asarray(1 / 255, np.float32), "per_grey_level"))
    del graph.input[:]
    shape = [detector.batch or "batch", detector.input_height, detector.input_width, 3]
    graph.input.append(helper.make_tensor_value_info("images", TensorProto.UINT8, shape))
    graph.output[0].name = result
    return served


def _add(model: ModelProto, nodes: list[NodeProto], constants: dict[str, Any]) -> None:
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())


def _node(kind: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


_YOLOV5_CONSTANTS = {
    "v5_axis": np.array([2]), "v5_0": np.array([0]), "v5_4": np.array([4]), "v5_5": np.array([5]),
    "v5_end": np.array([2**31 - 1]),
}  # fmt: skip


def _yolov5_nodes() -> list[NodeProto]:
    """[batch, P, 5 + classes] with objectness to [batch, 4 + classes, P]: a class' score is objectness times its own."""
    return [
        _node("Slice", "raw v5_0 v5_4 v5_axis", "v5_boxes"),
        _node("Slice", "raw v5_4 v5_5 v5_axis", "v5_objectness"),
        _node("Slice", "raw v5_5 v5_end v5_axis", "v5_classes"),
        _node("Mul", "v5_classes v5_objectness", "v5_scores"),
        _node("Concat", "v5_boxes v5_scores", "v5_rows", axis=2),
        _node("Transpose", "v5_rows", "output0", perm=[0, 2, 1]),
    ]


_NMS_FREE_CONSTANTS = {
    "nf_axis": np.array([2]), "nf_0": np.array([0]), "nf_4": np.array([4]), "nf_5": np.array([5]), "nf_6": np.array([6]),
    "nf_one": np.array([1]), "nf_k": np.array([1]), "least_score": np.float32(SCORE_THRESHOLD),
}  # fmt: skip


def _nms_free_nodes() -> list[NodeProto]:
    """[batch, K, 6] to the four outputs. Most exports are sorted already, but nothing says that they must be."""
    return [
        _node("Slice", "raw nf_4 nf_5 nf_axis", "nf_all_scores"),
        _node("Squeeze", "nf_all_scores nf_axis", "nf_scores"),
        _node("Shape", "nf_scores", "nf_shape"),
        _node("Gather", "nf_shape nf_k", "nf_count", axis=0),
        _node("TopK", "nf_scores nf_count", "det_scores nf_order", axis=1, largest=1, sorted=1),
        _node("Unsqueeze", "nf_order nf_axis", "nf_index"),
        _node("GatherND", "raw nf_index", "nf_rows", batch_dims=1),
        _node("Slice", "nf_rows nf_0 nf_4 nf_axis", "det_boxes"),
        _node("Slice", "nf_rows nf_5 nf_6 nf_axis", "nf_classes"),
        _node("Squeeze", "nf_classes nf_axis", "nf_classes_f32"),
        _node("Cast", "nf_classes_f32", "det_classes", to=TensorProto.INT32),
        _node("Greater", "det_scores least_score", "nf_counts"),
        _node("Cast", "nf_counts", "nf_ones", to=TensorProto.INT32),
        _node("ReduceSum", "nf_ones nf_one", "num_dets", keepdims=1),
    ]


_SPLIT_CONSTANTS = {
    "axis_1": np.array([1]), "box_from": np.array([0]), "box_to": np.array([4]), "class_from": np.array([4]),
    "class_to": np.array([2**31 - 1]),
}  # fmt: skip


def _split_nodes() -> list[NodeProto]:
    return [
        _node("Slice", "output0 box_from box_to axis_1", "boxes_cxcywh"),
        _node("Slice", "output0 class_from class_to axis_1", "scores"),
        _node("Transpose", "boxes_cxcywh", "boxes_by_anchor", perm=[0, 2, 1]),
    ]


def _tensorrt_nms_nodes() -> list[NodeProto]:
    """NMS by TensorRT's own plugin (EfficientNMS_TRT, version 1): boxes [batch, P, 4] as cx, cy, w, h; scores [batch, P, C]."""
    plugin = helper.make_node(
        "EfficientNMS_TRT",
        ["boxes_by_anchor", "scores_by_anchor"],
        ["num_dets", "det_boxes", "det_scores", "det_classes"],
        name="nms",
        plugin_version="1",
        background_class=-1,
        box_coding=1,  # centre and size
        class_agnostic=0,
        iou_threshold=IOU_THRESHOLD,
        max_output_boxes=TOP_K,
        score_activation=0,
        score_threshold=SCORE_THRESHOLD,
    )
    return [_node("Transpose", "scores", "scores_by_anchor", perm=[0, 2, 1]), plugin]


_NMS_CONSTANTS = {
    "top_k": np.int64(TOP_K), "iou": np.float32(IOU_THRESHOLD), "least_score": np.float32(SCORE_THRESHOLD),
    "half": np.float32(0.5), "zero": np.float32(0), "minus_one": np.int32(-1), "halves": np.array([2, 2]),
    "corner_axis": np.array([2]), "all_but_class": np.array([0, 2]),
}  # fmt: skip


def _onnx_nms_nodes() -> list[NodeProto]:
    """From boxes and scores to the four outputs, with ONNX's own NonMaxSuppression.

    An anchor keeps one class, so the kept scores fit a dense [batch, anchors] plane: NonMaxSuppression's triples are
    scattered into it, and TopK of the plane sorts and cuts each image on its own, whatever its neighbours have.
    """
    return [
        _node("Split", "boxes_by_anchor halves", "centers sizes", axis=2),
        _node("Mul", "sizes half", "half_sizes"),
        _node("Sub", "centers half_sizes", "least_corners"),
        _node("Add", "centers half_sizes", "most_corners"),
        _node("Concat", "least_corners most_corners", "boxes", axis=2),
        _node("ReduceMax", "scores", "best_scores", axes=[1], keepdims=1),
        _node("Equal", "scores best_scores", "is_best"),
        _node("Where", "is_best scores zero", "scores_of_best"),
        _node("ArgMax", "scores", "best_class", axis=1, keepdims=0),
        _node("NonMaxSuppression", "boxes scores_of_best top_k iou least_score", "selected"),
        _node("GatherND", "scores_of_best selected", "selected_scores"),
        _node("Gather", "selected all_but_class", "selected_anchors", axis=1),
        _node("Shape", "best_class", "plane_shape"),
        _node("ConstantOfShape", "plane_shape", "empty_plane"),
        _node("ScatterND", "empty_plane selected_anchors selected_scores", "kept_scores"),
        _node("Gather", "plane_shape axis_1", "anchor_count", axis=0),
        _node("Min", "anchor_count top_k", "top_count"),
        _node("TopK", "kept_scores top_count", "det_scores top_anchors", axis=1, largest=1, sorted=1),
        _node("Greater", "det_scores zero", "is_detection"),
        _node("Cast", "is_detection", "ones", to=TensorProto.INT32),
        _node("ReduceSum", "ones axis_1", "num_dets", keepdims=1),
        _node("GatherElements", "best_class top_anchors", "top_classes", axis=1),
        _node("Cast", "top_classes", "top_classes_i32", to=TensorProto.INT32),
        _node("Where", "is_detection top_classes_i32 minus_one", "det_classes"),
        _node("Unsqueeze", "top_anchors corner_axis", "anchor_index"),
        _node("GatherND", "boxes anchor_index", "top_boxes", batch_dims=1),
        _node("Unsqueeze", "is_detection corner_axis", "is_detection_box"),
        _node("Where", "is_detection_box top_boxes zero", "det_boxes"),
    ]

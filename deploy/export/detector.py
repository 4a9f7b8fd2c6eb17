"""An ONNX file looked at: is it a detector that can be served, and how does its output lie?

layout     output                       seen in
yolov8     [batch, 4 + classes, P]      YOLOv8, YOLO11, and our default: cx, cy, w, h, then a score for each class
yolov5     [batch, P, 5 + classes]      YOLOv5, YOLOv7: the same with an objectness before the scores
nms-free   [batch, up to 1000, 6]       YOLOv10, YOLO26: x1, y1, x2, y2, score, class; nothing is left to suppress
"""

import ast
from pathlib import Path
from typing import Literal

import msgspec
import onnx
from onnx import ModelProto

from deploy.export.errors import ExportError

MOST_BYTES = 2 * 1024**3 - 1
"""protobuf's own limit."""

MOST_KEPT = 1000
SMALLEST_SIDE, LARGEST_SIDE = 32, 8192
_OWN_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}

Layout = Literal["yolov8", "yolov5", "nms-free"]


class Detector(msgspec.Struct, frozen=True):
    """A detector and what was found out about it. `batch` is 0 where the file takes batches of any size."""

    model: ModelProto
    layout: Layout
    input_width: int
    input_height: int
    class_count: int
    labels: list[str]
    batch: int


def load(path: Path, *, input_size: tuple[int, int] | None = None, labels: list[str] | None = None) -> Detector:
    """Read an ONNX file. `input_size` (width, height) is needed where the file leaves it open; `labels` win over its own.

    Raises:
        ExportError: it cannot be read, is no valid ONNX, refers to other files, or is no detector of a known layout.
    """
    model = _read(path)
    graph = model.graph
    fed = {value.name for value in graph.initializer}
    inputs = [value for value in graph.input if value.name not in fed]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise ExportError(f"{path}: has {len(inputs)} inputs and {len(graph.output)} outputs, not one each")
    shape, out = _shape(inputs[0]), _shape(graph.output[0])
    if len(shape) != 4 or shape[1] != 3:
        raise ExportError(f"{path}: its input is {shape}, not [batch, 3, height, width]")
    if inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise ExportError(f"{path}: its input is not float32; export without half precision")
    width, height = input_size or (shape[3], shape[2])
    if not (SMALLEST_SIDE <= width <= LARGEST_SIDE and SMALLEST_SIDE <= height <= LARGEST_SIDE):
        raise ExportError(f"{path}: leaves its input size open or names a strange one ({width}x{height}); say --input-size WxH")
    if (shape[3] or width, shape[2] or height) != (width, height):
        raise ExportError(f"{path}: takes {shape[3]}x{shape[2]} pixels, not {width}x{height}")
    if shape[0] > 1:
        raise ExportError(f"{path}: takes batches of exactly {shape[0]}; export with batch=1 or dynamic=True")
    layout, class_count = _layout(path, out)
    own = _own_labels(model)
    if not class_count:  # a layout that does not tell
        class_count = len(labels or own)
    chosen = labels or own or [str(number) for number in range(class_count)]
    if len(chosen) != class_count:
        raise ExportError(f"{path}: has {class_count} classes, but {len(chosen)} labels were given")
    return Detector(model, layout, width, height, class_count, chosen, shape[0])


def read_labels(path: Path) -> list[str]:
    """Labels from a text file, one per line.

    Raises:
        ExportError: it cannot be read or is empty.
    """
    try:
        labels = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{path}: cannot be read ({error})") from None
    if not labels:
        raise ExportError(f"{path}: holds no labels; one per line is wanted")
    return labels


def _read(path: Path) -> ModelProto:
    try:
        too_large = path.stat().st_size > MOST_BYTES
        model = ModelProto() if too_large else onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # noqa: BLE001 - protobuf raises many kinds, all of which mean the same
        raise ExportError(f"{path}: is not an ONNX file ({_first_line(error)})") from None
    if too_large:
        raise ExportError(f"{path}: is larger than 2 GB")
    for tensor in model.graph.initializer:
        # A path in a stranger's file could lead anywhere on this disk.
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ExportError(f"{path}: keeps weights in other files; export it as one file")
    foreign = {node.domain for node in model.graph.node} - _OWN_DOMAINS
    if foreign:
        raise ExportError(f"{path}: uses operators of {', '.join(sorted(foreign))}, which nothing here can run")
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # noqa: BLE001 - as above
        raise ExportError(f"{path}: is not a valid ONNX file ({_first_line(error)})") from None
    return model


def _layout(path: Path, out: list[int]) -> tuple[Layout, int]:
    """The layout of an output and its class count; 0 where the layout does not tell."""
    if len(out) == 3:
        _, rows, columns = out
        if columns == 6 and 0 < rows <= MOST_KEPT:
            return "nms-free", 0
        # There are many more anchors than classes; an open number of anchors is read as 0.
        if rows > 4 and (columns > rows or columns == 0):
            return "yolov8", rows - 4
        if columns > 5 and (rows > columns or rows == 0):
            return "yolov5", columns - 5
    raise ExportError(
        f"{path}: its output is {out}; known are [batch, 4+classes, anchors], [batch, anchors, 5+classes] and [batch, 300, 6]"
    )


def _own_labels(model: ModelProto) -> list[str]:
    """Ultralytics writes `names` as a Python dict or list into the metadata."""
    text = next((entry.value for entry in model.metadata_props if entry.key == "names"), "")
    try:
        names = ast.literal_eval(text) if text else []
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    if isinstance(names, dict):
        names = [names.get(number) for number in range(len(names))]
    return [str(name) for name in names] if isinstance(names, list) and None not in names else []


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    return [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__

"""The plain reference: what a detector finds in a picture when nothing is clever.

    bytes ─▶ Pillow, full decode, upright ─▶ bilinear letterbox (cv2's INTER_LINEAR) ─▶ ONNX Runtime on the user's own export
          ─▶ NMS, pair by pair ─▶ boxes in pixels of the upright original

Nothing of it is shared with the workers: geometry, resampling, output layouts and NMS are written again, as plainly as they
can be, so that a fault of theirs is not made here too.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from PIL import Image, ImageOps

from deploy.export.detector import Detector
from deploy.export.errors import ExportError
from shared.messages import Box, Detection

Array = npt.NDArray[Any]
GREY = 114
MOST_CANDIDATES = 3000


class Reference:
    """A detector's own export, run by ONNX Runtime."""

    def __init__(self, detector: Detector) -> None:
        """Make it ready.

        Raises:
            ExportError: ONNX Runtime cannot load it.
        """
        self.detector = detector
        self._session = session(detector.model.SerializeToString())
        self._input = self._session.get_inputs()[0].name

    def detect(self, picture: bytes, confidence: float, iou: float) -> list[Detection]:
        """What it finds at this confidence, most confident first.

        Raises:
            ExportError: the graph does not run, or finds a class that it has no label for.
        """
        pixels = decode(picture)
        height, width = pixels.shape[:2]
        image, scale_x, scale_y, left, top = letterbox(pixels, self.detector.input_width, self.detector.input_height)
        rows = nms(self.rows(image, confidence), iou)
        found: list[Detection] = []
        for x1, y1, x2, y2, score, number in rows.tolist():
            corners = Box(
                min(max((x1 - left) / scale_x, 0), width),
                min(max((y1 - top) / scale_y, 0), height),
                min(max((x2 - left) / scale_x, 0), width),
                min(max((y2 - top) / scale_y, 0), height),
            )
            labels = self.detector.labels
            if not 0 <= number < len(labels):
                raise ExportError(f"the detector found class {int(number)}, but has {len(labels)} labels")
            found.append(Detection(labels[int(number)], int(number), score, corners))
        return found

    def rows(self, image: Array, confidence: float) -> Array:
        """Candidates of one letterboxed picture uint8 [height, width, 3], before NMS: x1, y1, x2, y2, score, class [n, 6],
        best first.

        Raises:
            ExportError: see `detect`.
        """
        output = run(self._session, {self._input: image.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)})[0][0]
        if self.detector.layout == "nms-free":
            rows = output
        else:
            anchors = output.T if self.detector.layout == "yolov8" else output
            scores = anchors[:, 4:] if self.detector.layout == "yolov8" else anchors[:, 5:] * anchors[:, 4:5]
            half = anchors[:, 2:4] / 2
            corners = [anchors[:, :2] - half, anchors[:, :2] + half]
            rows = np.concatenate([*corners, scores.max(1, keepdims=True), scores.argmax(1)[:, None]], 1)
        rows = rows[rows[:, 4] >= confidence]
        return rows[np.argsort(-rows[:, 4], kind="stable")][:MOST_CANDIDATES]

    @property
    def has_nms(self) -> bool:
        """Whether nothing is left to suppress."""
        return self.detector.layout == "nms-free"


def decode(picture: bytes) -> Array:
    """The upright picture, uint8 RGB [height, width, 3]."""
    with Image.open(io.BytesIO(picture)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def letterbox(pixels: Array, width: int, height: int) -> tuple[Array, float, float, int, int]:
    """Fit a picture into uint8 [height, width, 3]; with the scales that it got and where it lies."""
    rows, columns = pixels.shape[:2]
    ratio = min(height / rows, width / columns)
    new_width, new_height = max(round(columns * ratio), 1), max(round(rows * ratio), 1)
    left, top = round((width - new_width) / 2 - 0.1), round((height - new_height) / 2 - 0.1)
    image = np.full((height, width, 3), GREY, np.uint8)
    image[top : top + new_height, left : left + new_width] = np.rint(bilinear(pixels, new_width, new_height))
    return image, new_width / columns, new_height / rows, left, top


def bilinear(pixels: npt.NDArray[np.uint8], width: int, height: int) -> npt.NDArray[np.float32]:
    """Bilinear between pixel centres, edges repeated, no low-pass before it; cv2's INTER_LINEAR in floats."""
    rows, columns = pixels.shape[:2]

    def axis(wanted: int, given: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]:
        at = (np.arange(wanted) + 0.5) * given / wanted - 0.5
        low = np.floor(at).astype(np.intp)
        return np.clip(low, 0, given - 1), np.clip(low + 1, 0, given - 1), (at - low).astype(np.float32)

    y0, y1, fy = axis(height, rows)
    x0, x1, fx = axis(width, columns)
    mixed = pixels[y0].astype(np.float32) * (1 - fy)[:, None, None] + pixels[y1].astype(np.float32) * fy[:, None, None]
    return mixed[:, x0] * (1 - fx)[None, :, None] + mixed[:, x1] * fx[None, :, None]


def nms(rows: Array, threshold: float) -> Array:
    """Class by class, greedy, of rows that are sorted by score."""
    kept: list[Array] = []
    for row in rows:
        same = [other for other in kept if other[5] == row[5]]
        if all(overlap(row[:4].tolist(), other[:4].tolist()) <= threshold for other in same):
            kept.append(row)
    return np.array(kept).reshape(-1, 6)


def overlap(one: list[float], other: list[float]) -> float:
    """IoU of two boxes x1, y1, x2, y2."""
    shared = max(min(one[2], other[2]) - max(one[0], other[0]), 0) * max(min(one[3], other[3]) - max(one[1], other[1]), 0)
    areas = sum(max(box[2] - box[0], 0) * max(box[3] - box[1], 0) for box in (one, other))
    return shared / (areas - shared) if areas > shared else 0.0


def session(graph: bytes | Path) -> ort.InferenceSession:
    """ONNX Runtime on a graph.

    Raises:
        ExportError: it cannot be loaded.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    model = str(graph) if isinstance(graph, Path) else graph
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises many kinds
        raise ExportError(f"ONNX Runtime cannot load the graph: {' '.join(str(error).split())[:200]}") from None


def run(runner: ort.InferenceSession, feeds: dict[str, Array]) -> list[Array]:
    """All outputs.

    Raises:
        ExportError: the graph does not run.
    """
    try:
        return [np.asarray(output) for output in runner.run(None, feeds)]
    except Exception as error:  # noqa: BLE001 - as above
        raise ExportError(f"the graph does not run: {' '.join(str(error).split())[:200]}") from None

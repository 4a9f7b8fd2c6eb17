"""The plain output of YOLOv8, YOLO11 and their like: `output0` f32 [n, 4 + classes, anchors], NMS here.

Rows 0-3 are cx, cy, w, h in input pixels, the others a score in 0..1 for each class (Ultralytics' export without `nms=True`).
An anchor counts for its best class only, as there.
"""

from collections.abc import Sequence

import numpy as np

from inference_worker.heads.found import Found, Thresholds, of_classes, wanted
from inference_worker.nms import nms
from inference_worker.runtime import Array, Outputs

MOST_CANDIDATES = 3000
"""NMS sees only the best: a threshold near zero must not cost seconds."""

DEFAULT_IOU = 0.45


def yolo(outputs: Outputs, thresholds: Sequence[Thresholds]) -> list[Found]:
    """Detections of each picture of a batch.

    Raises:
        InferenceFailed: there is no output of this form.
    """
    output = wanted(outputs, "output0", 3)
    return [_picture(rows, asked) for rows, asked in zip(output, thresholds, strict=True)]


def _picture(rows: Array, asked: Thresholds) -> Found:
    # The best score of all anchors first, over contiguous rows; what class it is only matters for the few that remain.
    best = rows[4:].max(axis=0)
    anchors = np.flatnonzero(best >= asked.confidence)
    few = rows[:, anchors]
    class_ids = few[4:].argmax(axis=0)
    chosen = of_classes(class_ids, asked.class_ids)
    few, class_ids, scores = few[:, chosen], class_ids[chosen], best[anchors][chosen]
    if len(scores) > MOST_CANDIDATES:
        top = np.argsort(-scores, kind="stable")[:MOST_CANDIDATES]
        few, class_ids, scores = few[:, top], class_ids[top], scores[top]
    cx, cy, half_width, half_height = few[0], few[1], few[2] / 2, few[3] / 2
    boxes = np.stack([cx - half_width, cy - half_height, cx + half_width, cy + half_height], axis=1)
    iou = DEFAULT_IOU if asked.iou is None else asked.iou
    kept = nms(boxes, scores, class_ids, iou, asked.max_detections)
    return Found(boxes[kept], scores[kept], class_ids[kept])

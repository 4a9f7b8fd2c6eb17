"""NMS inside the model: the outputs of TensorRT's EfficientNMS plugin.

`num_dets` i32 [n, 1], `det_boxes` f32 [n, top, 4] as x1, y1, x2, y2 in input pixels, `det_scores` f32 [n, top], `det_classes`
i32 [n, top]. What the graph dropped is gone: a request can only ask for less. A lower `iou` than the graph's is applied here.
"""

from collections.abc import Sequence

import numpy as np

from inference_worker.heads.found import Found, Thresholds, of_classes, wanted
from inference_worker.nms import nms
from inference_worker.runtime import Outputs


def end2end(outputs: Outputs, thresholds: Sequence[Thresholds]) -> list[Found]:
    """Detections of each picture of a batch.

    Raises:
        InferenceFailed: the four outputs are not there.
    """
    counts, boxes = wanted(outputs, "num_dets", 2), wanted(outputs, "det_boxes", 3)
    scores, class_ids = wanted(outputs, "det_scores", 2), wanted(outputs, "det_classes", 2)
    found: list[Found] = []
    for index, asked in enumerate(thresholds):
        count = int(counts[index, 0])
        its_scores, its_classes = scores[index, :count], class_ids[index, :count].astype(np.int64)
        chosen = np.flatnonzero((its_scores >= asked.confidence) & of_classes(its_classes, asked.class_ids))
        chosen = chosen[np.argsort(-its_scores[chosen], kind="stable")][: asked.max_detections]
        picture = Found(boxes[index, chosen], its_scores[chosen], its_classes[chosen])
        if asked.iou is not None:
            kept = nms(*picture, asked.iou, asked.max_detections)
            picture = Found(picture.boxes[kept], picture.scores[kept], picture.class_ids[kept])
        found.append(picture)
    return found

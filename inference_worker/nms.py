"""Class-aware non-maximum suppression in numpy: boxes of different classes never suppress each other."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def nms(boxes: Array, scores: Array, class_ids: Array, iou_threshold: float, most: int) -> Array:
    """Indices of the boxes that are kept, best score first, at most `most`.

    Greedy: a box is dropped if its IoU with a better one of its class that was kept is above the threshold. `boxes` are
    x1, y1, x2, y2 [n, 4]; equal scores keep their order. Work grows with n times the kept boxes.
    """
    order = np.argsort(-scores, kind="stable")
    # One class' boxes are moved far from any other's, so that one pass does all classes.
    span = float(np.abs(boxes).max(initial=0.0)) * 2 + 1
    x1, y1, x2, y2 = (boxes.astype(np.float64) + class_ids[:, None] * span)[order].T
    areas = (x2 - x1).clip(0) * (y2 - y1).clip(0)
    alive = np.ones(len(order), bool)
    kept: list[int] = []
    for index in range(len(order)):
        if not alive[index]:
            continue
        kept.append(int(order[index]))
        if len(kept) == most:
            break
        rest = slice(index + 1, None)
        width = (np.minimum(x2[index], x2[rest]) - np.maximum(x1[index], x1[rest])).clip(0)
        height = (np.minimum(y2[index], y2[rest]) - np.maximum(y1[index], y1[rest])).clip(0)
        overlap = width * height
        union = areas[index] + areas[rest] - overlap
        alive[rest] &= overlap <= iou_threshold * union
    return np.array(kept, np.int64)

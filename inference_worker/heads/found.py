"""What a head is asked for and what it gives."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from inference_worker.runtime import Array, Outputs
from shared.errors import InferenceFailed


class Thresholds(msgspec.Struct, frozen=True, kw_only=True):
    """What one picture's request asks for. `iou` is `None` where the model's own NMS is to be left as it is."""

    confidence: float
    iou: float | None
    max_detections: int
    class_ids: tuple[int, ...] = ()


class Found(NamedTuple):
    """One picture's detections, best first: boxes x1, y1, x2, y2 in input pixels [n, 4], scores [n], class IDs [n]."""

    boxes: Array
    scores: Array
    class_ids: Array


Head = Callable[[Outputs, Sequence[Thresholds]], list[Found]]
"""Reads a batch; raises InferenceFailed if the outputs are not those of this head."""


def wanted(outputs: Outputs, name: str, axes: int) -> Array:
    """An output by name with this many axes.

    Raises:
        InferenceFailed: there is none.
    """
    output = outputs.get(name)
    if output is None or output.ndim != axes:
        shapes = ", ".join(f"{given}{list(array.shape)}" for given, array in outputs.items())
        raise InferenceFailed(f"the model has no output {name!r} with {axes} axes, but {shapes or 'none'}")
    return output


def of_classes(class_ids: Array, asked: tuple[int, ...]) -> Array:
    """Which of these are of the classes asked for; all if none was."""
    return np.isin(class_ids, asked) if asked else np.ones(len(class_ids), bool)

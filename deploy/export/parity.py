"""The parity gate: does what is served find what the plain reference finds?

Every detection of the reference of at least `LEAST_CONFIDENCE` must be found again, of the same class, with boxes and
confidences as near as the track's limits say. `Locally` runs the served graph in this process with the workers' own decoder
and head; a mesh is asked over HTTP by `visionmesh models verify`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import msgspec
import numpy as np

from deploy.export.errors import ExportError
from deploy.export.reference import Reference, overlap, run, session
from inference_worker.heads import HEADS, Thresholds
from preprocess_worker.formats import Limits
from preprocess_worker.pool import DecoderPool
from shared.errors import MeshError
from shared.letterbox import to_original
from shared.messages import Box, Detection
from shared.models import Model

LEAST_CONFIDENCE = 0.5
ASKED_CONFIDENCE = 0.4
"""What is asked of the served model: lower, so that one that is found a little less surely is not called missed."""

_DECODE_TIMEOUT_S = 60.0
_LIMITS = Limits(100_000_000, 32_768, frozenset({"jpeg", "png", "webp", "gif"}))


class Limit(msgspec.Struct, frozen=True):
    """How near is near enough."""

    iou: float
    confidence: float


LIMITS = {"A": Limit(0.95, 0.03), "B": Limit(0.95, 0.03), "C": Limit(0.95, 0.03), "D": Limit(0.9, 0.05)}


class Agreement(msgspec.Struct, kw_only=True):
    """How a model's findings in one picture compare. `worst_iou` and `worst_confidence` are over those found again."""

    picture: str
    wanted: int = 0
    missed: list[str] = []
    worst_iou: float = 1.0
    worst_confidence: float = 0.0


def compare(picture: str, wanted: Sequence[Detection], found: Sequence[Detection], limit: Limit) -> Agreement:
    """Look for each wanted detection among those found; one that is too far off counts as missed, with how far it is."""
    agreement = Agreement(picture=picture)
    for one in wanted:
        if one.confidence < LEAST_CONFIDENCE:
            continue
        agreement.wanted += 1
        same = [other for other in found if other.class_id == one.class_id]
        if not same:
            agreement.missed.append(f"{one.label} {one.confidence:.3f} is not found")
            continue
        iou, other = max(((_overlap(one.box, other.box), other) for other in same), key=lambda pair: pair[0])
        apart = abs(one.confidence - other.confidence)
        if iou < limit.iou or apart > limit.confidence:
            agreement.missed.append(f"{one.label} {one.confidence:.3f} is found with IoU {iou:.3f} and {other.confidence:.3f}")
        agreement.worst_iou = min(agreement.worst_iou, iou)
        agreement.worst_confidence = max(agreement.worst_confidence, apart)
    return agreement


def _overlap(one: Box, other: Box) -> float:
    return overlap([one.x1, one.y1, one.x2, one.y2], [other.x1, other.y1, other.x2, other.y2])


def wanted(reference: Reference, picture: bytes, model: Model) -> list[Detection]:
    """What the reference finds, suppressed as this model does it.

    Raises:
        ExportError: the reference does not run.
    """
    return reference.detect(picture, ASKED_CONFIDENCE, 1.0 if reference.has_nms else model.iou)


class Locally:
    """A served graph in this process, behind the workers' decoder and head. Use as an async context manager."""

    def __init__(self, model: Model, graph: bytes | Path) -> None:
        """Load it.

        Raises:
            ExportError: ONNX Runtime cannot.
        """
        self._model = model
        self._session = session(graph)
        self._pool = DecoderPool(1, _DECODE_TIMEOUT_S, _LIMITS)

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.__aexit__()

    async def detect(self, picture: bytes) -> list[Detection]:
        """What is served of this picture.

        Raises:
            ExportError: the picture cannot be decoded or the graph does not run.
        """
        model = self._model
        try:
            decoded = await self._pool.decode(picture, model.input_width, model.input_height)
            tensor = decoded.tensor
            image = np.frombuffer(tensor, np.uint8).reshape(1, model.input_height, model.input_width, 3)
            names = [output.name for output in self._session.get_outputs()]
            outputs = dict(zip(names, run(self._session, {self._session.get_inputs()[0].name: image}), strict=True))
            asked = Thresholds(
                confidence=ASKED_CONFIDENCE,
                iou=model.iou if model.head == "yolo" else None,
                max_detections=model.max_detections,
            )
            (found,) = HEADS[model.head](outputs, [asked])
        except MeshError as error:
            raise ExportError(f"model {model.name!r}: {error.detail}") from None
        size = decoded.image.width, decoded.image.height
        return [
            Detection(model.label(number), number, score, Box(*to_original(tuple(box), decoded.placement, *size)))
            for box, score, number in zip(found.boxes.tolist(), found.scores.tolist(), found.class_ids.tolist(), strict=True)
        ]

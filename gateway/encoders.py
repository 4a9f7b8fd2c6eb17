"""How an answer is written: JSON or MessagePack by `Accept`, and a job's detections in the format asked for.

A format is a function and a row in `FORMATS`. `mesh` is the contract's own; the others are what the tools of the field read.
"""

from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from shared.coco import category_id
from shared.errors import InvalidParameter
from shared.messages import Batch, Box, Job

_to_json = msgspec.json.Encoder().encode
_to_msgpack = msgspec.msgpack.Encoder().encode
_MSGPACK_TYPES = ("application/msgpack", "application/x-msgpack", "application/vnd.msgpack")


class UltralyticsDetection(msgspec.Struct, rename={"class_id": "class"}):
    """A detection as Ultralytics writes it."""

    name: str
    class_id: int
    confidence: float
    box: Box


class RoboflowPrediction(msgspec.Struct, rename={"label": "class"}):
    """A detection as Roboflow writes it: centre and size in pixels."""

    x: float
    y: float
    width: float
    height: float
    confidence: float
    label: str
    class_id: int


class CocoDetection(msgspec.Struct):
    """A detection as COCO's result files have it: `bbox` is x, y, width, height in pixels."""

    image_id: str
    category_id: int
    bbox: tuple[float, float, float, float]
    score: float


class JobUltralytics(Job, kw_only=True):
    """A job with its detections as Ultralytics writes them."""

    detections: list[UltralyticsDetection] | None = None  # type: ignore[assignment] # a dialect replaces the field


class JobRoboflow(Job, kw_only=True):
    """A job with its detections as Roboflow writes them, under `predictions`."""

    predictions: list[RoboflowPrediction] = []
    detections: None = None  # type: ignore[assignment] # as above


class JobCoco(Job, kw_only=True):
    """A job with its detections as COCO's result files have them."""

    detections: list[CocoDetection] | None = None  # type: ignore[assignment] # as above


ANY_JOB = (Job, JobUltralytics, JobRoboflow, JobCoco)


def _ultralytics(job: Job) -> dict[str, Any]:
    """As `Results.to_json()` of Ultralytics: name, class, confidence, box with corners."""
    return {
        "detections": [
            UltralyticsDetection(found.label, found.class_id, found.confidence, found.box) for found in job.detections or ()
        ]
    }


def _roboflow(job: Job) -> dict[str, Any]:
    """As Roboflow's inference API: centre and size; `supervision.Detections.from_inference` takes the whole answer."""
    predictions = [
        RoboflowPrediction(
            x=(found.box.x1 + found.box.x2) / 2,
            y=(found.box.y1 + found.box.y2) / 2,
            width=found.box.x2 - found.box.x1,
            height=found.box.y2 - found.box.y1,
            confidence=found.confidence,
            label=found.label,
            class_id=found.class_id,
        )
        for found in job.detections or ()
    ]
    return {"predictions": predictions, "detections": None}


def _coco(job: Job) -> dict[str, Any]:
    """As COCO's result files: `[x, y, width, height]` and category IDs."""
    return {
        "detections": [
            CocoDetection(
                image_id=job.id,
                category_id=category_id(found.class_id),
                bbox=(found.box.x1, found.box.y1, found.box.x2 - found.box.x1, found.box.y2 - found.box.y1),
                score=found.confidence,
            )
            for found in job.detections or ()
        ]
    }


FORMATS: dict[str, Callable[[Job], dict[str, Any]] | None] = {
    "mesh": None,
    "ultralytics": _ultralytics,
    "roboflow": _roboflow,
    "coco": _coco,
}


def check_format(name: str | None) -> str:
    """The name of a format; `mesh` if none was asked for.

    Raises:
        InvalidParameter: there is no such format.
    """
    if name is None:
        return "mesh"
    if name not in FORMATS:
        raise InvalidParameter(f"format: {name!r} is not one of {', '.join(FORMATS)}")
    return name


def answer(request: Request, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer with this content, in what the client accepts."""
    accept = request.headers.get("accept", "")
    if any(kind in accept for kind in _MSGPACK_TYPES):
        return Response(_to_msgpack(content), status, headers, media_type=_MSGPACK_TYPES[0])
    return Response(_to_json(content), status, headers, media_type="application/json")


def answer_json(content: Any) -> Response:
    """An answer that is JSON whatever the client accepts: a document whose format says so."""
    return Response(_to_json(content), media_type="application/json")


def answer_batch(
    request: Request, batch: Batch, format_name: str = "mesh", status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """An answer with a batch, the job of each picture in the format asked for."""
    encode = FORMATS[format_name]
    if encode is None or batch.results is None:
        return answer(request, batch, status, headers)
    results = [
        msgspec.structs.asdict(result) | {"job": result.job and msgspec.structs.asdict(result.job) | encode(result.job)}
        for result in batch.results
    ]
    return answer(request, msgspec.structs.asdict(batch) | {"results": results}, status, headers)


def answer_job(
    request: Request, job: Job, format_name: str = "mesh", status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """An answer with a job. Its stages' times go to the `Server-Timing` header as well."""
    request.scope["stages_ms"] = job.timings_ms
    encode = FORMATS[format_name]
    content = job if encode is None else msgspec.structs.asdict(job) | encode(job)
    return answer(request, content, status, headers)

"""A job as the client returns it: the mesh's own structure, with ways on into other tools."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgspec

from shared.coco import category_id
from shared.errors import DeadlinePassed, Internal
from shared.messages import Detection, Job, JobProblem, timestamp
from visionmesh import errors, pictures
from visionmesh.errors import MeshError, UnreadablePicture
from visionmesh.pictures import Picture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image


_WITHOUT_RESULT: dict[str, type[MeshError]] = {
    "failed": Internal,
    "canceled": errors.Canceled,
    "expired": DeadlinePassed,
}


class Arrays(NamedTuple):
    """Detections as numpy arrays: `xyxy` float32 [N, 4], `confidence` float32 [N], `class_id` int64 [N], `labels` str [N]."""

    xyxy: "NDArray[np.float32]"
    confidence: "NDArray[np.float32]"
    class_id: "NDArray[np.int64]"
    labels: "NDArray[np.str_]"


class Result(Job, kw_only=True, dict=True):
    """A job, ended or not, with its detections. Iterating gives the detections.

    >>> from visionmesh import Client
    >>> with Client() as mesh:
    ...     result = mesh.detect("coffee.png")
    >>> for found in result:
    ...     print(f"{found.label} at x={found.box.x1:.0f}")
    cup at x=171
    dining table at x=0
    >>> result.draw().save("drawn.jpg")
    """

    @property
    def ok(self) -> bool:
        """Whether the job succeeded."""
        return self.status == "succeeded"

    @property
    def source(self) -> Path | None:
        """The file that was sent, if the picture was given as a path to this client."""
        return self.__dict__.get("source")

    @property
    def entry_id(self) -> str:
        """Where the result stands in the stream of results, if a durable subscription brought it; else empty."""
        return self.__dict__.get("entry_id", "")

    def __iter__(self) -> Iterator[Detection]:
        return iter(self.detections or ())

    def raise_for_error(self) -> Self:
        """The result itself, if the job succeeded or goes on.

        Raises:
            MeshError: it failed, was canceled or came too late; the class says why.
        """
        if self.error is not None:
            raise errors.of_job(self.error, self.id)
        if self.status in _WITHOUT_RESULT:
            raise _WITHOUT_RESULT[self.status](job_id=self.id)
        return self

    def to_arrays(self) -> Arrays:
        """The detections as arrays; needs numpy. Without detections the arrays have length 0."""
        import numpy as np

        found = self.detections or []
        boxes = [(each.box.x1, each.box.y1, each.box.x2, each.box.y2) for each in found]
        return Arrays(
            np.array(boxes, np.float32).reshape(len(found), 4),
            np.array([each.confidence for each in found], np.float32),
            np.array([each.class_id for each in found], np.int64),
            np.array([each.label for each in found], np.str_),
        )

    def to_supervision(self) -> Any:
        """As `supervision.Detections`, with the labels in `data["class_name"]`; needs the package supervision."""
        import supervision  # type: ignore[import-not-found]

        arrays = self.to_arrays()
        return supervision.Detections(
            xyxy=arrays.xyxy,
            confidence=arrays.confidence,
            class_id=arrays.class_id,
            data={"class_name": arrays.labels},
        )

    def to_coco(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """As annotations of COCO: `bbox` is [x, y, width, height] in pixels, `category_id` that of COCO's own files (1-90).

        `image_id` is the job's ID if none is given. The result is what COCO's result files hold, and their `area` besides.
        """
        annotations: list[dict[str, Any]] = []
        for found in self:
            width, height = found.box.x2 - found.box.x1, found.box.y2 - found.box.y1
            annotations.append(
                {
                    "image_id": self.id if image_id is None else image_id,
                    "category_id": category_id(found.class_id),
                    "bbox": [round(side, 2) for side in (found.box.x1, found.box.y1, width, height)],
                    "area": round(width * height, 2),
                    "iscrowd": 0,
                    "score": found.confidence,
                }
            )
        return annotations

    def draw(self, picture: Picture | None = None) -> "Image":
        """The upright picture with the detections drawn onto it; needs Pillow.

        `picture` is what was sent; it can be left out if that was a path.

        Raises:
            UnreadablePicture: it cannot be read, or is not known.
        """
        picture = picture if picture is not None else self.source
        if picture is None:
            raise UnreadablePicture("draw(picture) wants the picture: only a path is remembered")
        canvas = pictures.open_upright(picture)
        from visionmesh import drawing  # Pillow is there: the line above needed it

        drawing.annotate(canvas, self.detections or [])
        return canvas


def of_job(job: Job, *, entry_id: str = "") -> Result:
    """A job that came by another way than HTTP as a result."""
    result = Result(**msgspec.structs.asdict(job))
    vars(result)["entry_id"] = entry_id
    return result


def sent_as(result: Result, picture: Picture) -> Result:
    """The same result, which remembers the file that was sent."""
    vars(result)["source"] = pictures.path_of(picture)
    return result


def refused(error: MeshError, model: str, now_ms: float) -> Result:
    """What stands in the place of a picture of which no job was made, or whose job could not be followed."""
    return Result(
        id=error.job_id or "",
        status="failed",
        model=model,
        track="",
        created_at=timestamp(now_ms),
        finished_at=timestamp(now_ms),
        error=JobProblem(error.code, error.detail),
    )

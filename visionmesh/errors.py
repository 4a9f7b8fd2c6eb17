"""What a caller of the mesh can meet, as exceptions. All are `MeshError`s with a stable `code` and one sentence in `detail`.

    MeshError
    ├── ClientError            found on this side
    │   ├── Unreachable        nobody answers at the URL, or the connection broke, and trying again did not help
    │   ├── TimedOut           no answer, or no end of the job, within the time given
    │   ├── BadAnswer          whoever answers at the URL is not a mesh
    │   └── UnreadablePicture  the picture cannot be read or encoded
    ├── RequestError           the mesh refused the request: TooLarge, UnsupportedMedia, UnknownModel, Overloaded, ...
    └── JobError               the job failed: CorruptImage, TooManyPixels, DeadlinePassed, Canceled, ...

The last two and nearly all their leaves are those of `shared.errors`, which the services raise: a problem document that
comes back over HTTP is the same class here as it was there.
"""

import email.utils
import time
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from shared import errors
from shared.errors import BY_CODE, JobError, MeshError, RequestError
from shared.messages import JobProblem

__all__ = [
    "BadAnswer",
    "Canceled",
    "ClientError",
    "JobError",
    "MeshError",
    "RequestError",
    "TimedOut",
    "Unreachable",
    "UnreadablePicture",
    "of_answer",
    "of_job",
]


class ClientError(MeshError):
    """The request did not get an answer of the mesh."""

    code, title = "client-error", "The request failed on the way"


class Unreachable(ClientError):
    """Nobody answers at the URL, or the connection broke."""

    code, title = "unreachable", "The mesh cannot be reached"


class TimedOut(ClientError):
    """Time ran out. `job_id` names the job if there is one by then: it goes on in the mesh."""

    code, title = "timed-out", "The answer did not come in time"


class BadAnswer(ClientError):
    """The answer is none of a mesh."""

    code, title = "bad-answer", "The answer is not that of a mesh"


class UnreadablePicture(ClientError):
    """The picture cannot be read, or is nothing that a picture can be made of."""

    code, title = "unreadable-picture", "The picture cannot be read"


class Canceled(JobError):
    """The job was canceled."""

    code, status, title = "canceled", 409, "The job was canceled"


_OURS = {kind.code: kind for kind in (Unreachable, TimedOut, BadAnswer, UnreadablePicture)}
"""What a result without a job may carry: see `visionmesh.results.refused`."""

_BY_STATUS: dict[int, type[MeshError]] = {
    401: errors.Unauthorized,
    403: errors.Forbidden,
    413: errors.TooLarge,
    429: errors.TooManyRequests,
    502: errors.Overloaded,
    503: errors.Overloaded,
    504: errors.Overloaded,
}
"""What a proxy before the mesh means, which sends no problem document."""


def of_answer(status: int, headers: Mapping[str, str], content: bytes) -> MeshError:
    """The error that an HTTP answer of status 4xx or 5xx stands for; `headers` by lower-case name."""
    problem: dict[str, Any] = {}
    try:
        decoded: object = msgspec.json.decode(content)
    except msgspec.DecodeError:
        decoded = None
    if isinstance(decoded, dict):
        problem = cast("dict[str, Any]", decoded)
    detail = str(problem.get("detail") or f"HTTP status {status}")
    kind = BY_CODE.get(str(problem.get("code"))) or _BY_STATUS.get(status) or BadAnswer
    job_id = problem.get("job_id")
    return kind(
        detail, retry_after_s=_retry_after_s(headers.get("retry-after", "")), job_id=job_id if isinstance(job_id, str) else None
    )


def of_job(problem: JobProblem, job_id: str) -> MeshError:
    """The error that ended a job."""
    kind = BY_CODE.get(problem.code) or _OURS.get(problem.code) or errors.Internal
    return kind(problem.detail, job_id=job_id or None)


def _retry_after_s(value: str) -> int | None:
    """The header's seconds; it may be a date instead (RFC 9110, 10.2.3)."""
    if value.strip().isdecimal():
        return int(value)
    try:
        return max(round(email.utils.parsedate_to_datetime(value).timestamp() - time.time()), 0)
    except (TypeError, ValueError):
        return None

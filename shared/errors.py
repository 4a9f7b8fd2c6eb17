"""Every error a user of the mesh can meet, drawn once.

    MeshError
    ├── RequestError      answered over HTTP; no job exists
    └── JobError          ends a job; stored under `error` of the job

An error class carries a stable `code` (also the last part of the problem's `type`), the HTTP status and a title.
`gateway.problems` maps them to RFC 9457 once; workers store `code` and `detail` in the job.
"""

from typing import ClassVar


class MeshError(Exception):
    """Base of all errors with a stable code. `detail` is one sentence for the person who caused or met it."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str = "", *, retry_after_s: int | None = None, job_id: str | None = None) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.retry_after_s = retry_after_s
        self.job_id = job_id


# --- answered over HTTP ---------------------------------------------------------------------------------------------


class RequestError(MeshError):
    """The request is refused; nothing of it is kept."""


class BadRequest(RequestError):
    code, status, title = "bad-request", 400, "Bad request"


class EmptyBody(RequestError):
    code, status, title = "empty-body", 400, "The body is empty"


class MalformedMultipart(RequestError):
    code, status, title = "malformed-multipart", 400, "The multipart body cannot be parsed"


class Unauthorized(RequestError):
    code, status, title = "unauthorized", 401, "An API key is needed"


class Forbidden(RequestError):
    code, status, title = "forbidden", 403, "The API key does not allow this"


class NotFound(RequestError):
    code, status, title = "not-found", 404, "Not found"


class UnknownModel(RequestError):
    code, status, title = "unknown-model", 404, "No such model"


class UnknownJob(RequestError):
    code, status, title = "unknown-job", 404, "No such job"


class PictureNotKept(RequestError):
    code, status, title = "picture-not-kept", 404, "The job's picture is not kept"


class MethodNotAllowed(RequestError):
    code, status, title = "method-not-allowed", 405, "Method not allowed"


class BodyTimeout(RequestError):
    code, status, title = "body-timeout", 408, "The body came too slowly"


class StillAccepting(RequestError):
    code, status, title = "still-accepting", 409, "A request with this key is being accepted"


class NoResult(RequestError):
    code, status, title = "no-result", 409, "The job has no result"


class ExpiredJob(RequestError):
    code, status, title = "expired-job", 410, "The job's result is no longer kept"


class TooLarge(RequestError):
    code, status, title = "too-large", 413, "The body is too large"


class UnsupportedMedia(RequestError):
    code, status, title = "unsupported-media", 415, "Not a picture this service takes"


class IdempotencyMismatch(RequestError):
    code, status, title = "idempotency-mismatch", 422, "The key was used with another request"


class InvalidParameter(RequestError):
    code, status, title = "invalid-parameter", 422, "A parameter is wrong"


class TooManyRequests(RequestError):
    code, status, title = "too-many-requests", 429, "The rate or share of this key is used up"


class Overloaded(RequestError):
    code, status, title = "overloaded", 503, "The mesh is full at the moment"


class StoreUnavailable(RequestError):
    code, status, title = "store-unavailable", 503, "The store does not answer"


class ModelUnavailable(RequestError):
    code, status, title = "model-unavailable", 503, "The model is not served at the moment"


# --- ends a job -----------------------------------------------------------------------------------------------------


class JobError(MeshError):
    """The job fails with this code; the status is what `/predict` answers, where the job is the request.

    `is_ours`: the picture may be good, so the job is kept as a dead letter that can be replayed.
    """

    is_ours: ClassVar[bool] = False


class CorruptImage(JobError):
    code, status, title = "corrupt-image", 422, "The picture is damaged"


class UnsupportedFormat(JobError):
    code, status, title = "unsupported-format", 415, "The picture's format is not taken"


class TooManyPixels(JobError):
    code, status, title = "too-many-pixels", 422, "The picture has too many pixels"


class SideTooLong(JobError):
    code, status, title = "side-too-long", 422, "A side of the picture is too long"


class DecodeTimeout(JobError):
    code, status, title = "decode-timeout", 422, "Decoding the picture took too long"


class DecoderCrashed(JobError):
    code, status, title = "decoder-crashed", 422, "The decoder crashed on the picture"
    is_ours = True


class UploadLost(JobError):
    code, status, title = "upload-lost", 500, "The upload is gone"
    is_ours = True


class InferenceUnavailable(JobError):
    code, status, title = "inference-unavailable", 503, "The model did not answer before the job's deadline"
    is_ours = True


class InferenceFailed(JobError):
    code, status, title = "inference-failed", 502, "The model refused the picture"
    is_ours = True


class RuntimeMissing(InferenceFailed):
    code, status, title = "runtime-missing", 501, "The model's runtime is not installed"


class DeadlinePassed(JobError):
    code, status, title = "deadline-passed", 504, "The job was not done before its deadline"
    is_ours = True


class Internal(JobError):
    code, status, title = "internal", 500, "Internal error"
    is_ours = True


def is_ours(code: str) -> bool:
    """Whether a job with this code failed though its picture may be good."""
    return getattr(BY_CODE.get(code), "is_ours", False)


def _leaves(cls: type[MeshError]) -> list[type[MeshError]]:
    return [cls, *(leaf for sub in cls.__subclasses__() for leaf in _leaves(sub))]


BY_CODE: dict[str, type[MeshError]] = {
    cls.code: cls for cls in _leaves(MeshError) if cls not in (MeshError, RequestError, JobError)
}
"""Code -> class, for whoever reads a stored or received problem back."""

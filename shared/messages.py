"""The structures that travel between the services and to the users, as msgspec types.

A `Job` is what every reader gets: over HTTP as JSON or MessagePack, on the Redis channels as MessagePack. A `Ticket` is
what a worker gets with a claim. Field names of `Job` are a public contract.

Old and new processes run side by side while a mesh is upgraded. A field that is added is ignored by those who do not know
it; where that would give a wrong result, `MESSAGE_VERSION` goes up, and a worker leaves jobs of a version above its own to
newer workers.
"""

from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

MESSAGE_VERSION: Final = 1
"""What this code writes into a job's hash (field `v`), and the highest that it understands."""

Status = Literal["queued", "processing", "succeeded", "failed", "canceled", "expired"]
Stage = Literal["decoding", "decoded", "inferring"]

TERMINAL: Final[frozenset[str]] = frozenset({"succeeded", "failed", "canceled", "expired"})


class Box(msgspec.Struct, frozen=True):
    """Corners in pixels of the upright original, clipped to it; x to the right, y down."""

    x1: float
    y1: float
    x2: float
    y2: float


class Detection(msgspec.Struct, frozen=True):
    """One object found. `confidence` is in 0..1; `class_id` indexes the model's labels."""

    label: str
    class_id: int
    confidence: float
    box: Box


class ImageInfo(msgspec.Struct, frozen=True):
    """The upright picture: sides in pixels, `format` as recognised by its bytes (`jpeg`, `png`, ...)."""

    width: int
    height: int
    format: str


class JobProblem(msgspec.Struct, frozen=True):
    """Why a job failed: a code of `shared.errors` and one sentence."""

    code: str
    detail: str


class Job(msgspec.Struct, kw_only=True):
    """A job as users see it. Times are RFC 3339 in UTC with milliseconds, `timings_ms` milliseconds by stage."""

    id: str
    status: Status
    stage: Stage | None = None
    model: str
    track: str
    created_at: str
    finished_at: str | None = None
    attempts: int = 0
    image: ImageInfo | None = None
    detections: list[Detection] | None = None
    timings_ms: dict[str, float] = {}
    batch_size: int | None = None
    error: JobProblem | None = None


BatchStatus = Literal["receiving", "processing", "finished"]


class BatchResult(msgspec.Struct, kw_only=True):
    """One picture of a batch, `index` counted from 0 in the order in which they were sent: its job, or why there is none."""

    index: int
    job: Job | None = None
    error: JobProblem | None = None


class Batch(msgspec.Struct, kw_only=True):
    """Many pictures of one request as users see them. `counts` tells how members ended: `succeeded`, `failed`, `canceled`,
    `expired`, and `refused` for those that never became a job. `total` is unknown while pictures are still coming."""

    id: str
    status: BatchStatus
    model: str
    track: str
    created_at: str
    finished_at: str | None = None
    total: int | None = None
    ended: int = 0
    counts: dict[str, int] = {}
    results: list[BatchResult] | None = None


class Delivery(msgspec.Struct, kw_only=True):
    """One try to tell a callback. `status` is the answer's, if there was one; `next_at` is when it is tried again, if it is."""

    attempt: int
    at: str
    url: str
    delivered: bool
    took_ms: float
    status: int | None = None
    error: str | None = None
    next_at: str | None = None


class JobOptions(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What a request may ask for; `None` means the model's own default. `class_ids` empty means all classes."""

    confidence: float | None = None
    iou: float | None = None
    max_detections: int | None = None
    class_ids: list[int] = []
    callback_url: str | None = None
    keep_upload: bool = False


class Drawing(msgspec.Struct, frozen=True, array_like=True):
    """How a picture with its detections is drawn; `max_side` in pixels, the picture is never enlarged."""

    format: Literal["jpeg", "webp", "png"] = "jpeg"
    max_side: int = 1280

    def __str__(self) -> str:
        return f"{self.format}:{self.max_side}"


class Placement(msgspec.Struct, frozen=True, array_like=True):
    """Where a letterboxed picture lies in the model's input: input = original * scale + pad, all in pixels."""

    scale_x: float
    scale_y: float
    pad_x: float
    pad_y: float


Affine = tuple[float, float, float, float, float, float]
"""Two rows of three: x = a*X + b*Y + c, y = d*X + e*Y + f."""


class Ticket(msgspec.Struct, kw_only=True):
    """A claimed job, with the fence that a worker must show to change it. `*_ms` are Redis' epoch milliseconds;
    `queued_ms` is when it entered its present queue; `slot` is where in shared memory its tensor lies, if it does;
    `served_as` is the version of the model that it was accepted with (`Model.served_as`); `affine` says that the picture was
    not decoded and is to be read with it (`shared.letterbox.to_stored`); `picture` came along with a claim for decoding."""

    id: str
    partition: int
    entry_id: str
    fence: int
    attempts: int
    model: str
    served_as: str
    track: str
    options: JobOptions
    created_ms: int
    queued_ms: int
    claimed_ms: int
    deadline_ms: int
    upload_bytes: int
    timings_ms: dict[str, float]
    image: ImageInfo | None = None
    placement: Placement | None = None
    tensor: str | None = None
    slot: str = ""
    affine: Affine | None = None
    reply_to: str = ""
    traceparent: str = ""
    tenant: str = ""
    crashes: int = 0
    picture: bytes | None = None


class Outcome(msgspec.Struct, kw_only=True):
    """What inference found in one picture; `timings_ms` holds the stages that this worker measured."""

    detections: list[Detection]
    batch_size: int
    timings_ms: dict[str, float]


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU as NVML sees it; `utilization_percent` is the driver's own average."""

    name: str
    memory_used_bytes: int
    memory_total_bytes: int
    utilization_percent: int


class Heartbeat(msgspec.Struct, kw_only=True):
    """What a process says of itself every few seconds. `models` are those it serves or that are ready in its Triton,
    by what they are `served_as`; `message_version` is the `MESSAGE_VERSION` of its code."""

    kind: Literal["gateway", "preprocess", "inference", "tasks"]
    name: str
    host: str
    pid: int
    started_at: str
    rss_bytes: int
    cpu_percent: float
    jobs_done: int
    last_error: str | None = None
    models: list[str] = []
    gpu: list[Gpu] | None = None
    details: dict[str, Any] = {}
    metrics_port: int = 0
    message_version: int = 1
    beat_at_ms: int = 0


def timestamp(epoch_ms: float) -> str:
    """Epoch milliseconds as RFC 3339 in UTC: `2026-01-01T12:00:00.123Z`."""
    return datetime.fromtimestamp(epoch_ms / 1000, tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


job_to_msgpack = msgspec.msgpack.Encoder().encode
job_to_json = msgspec.json.Encoder().encode
job_from_msgpack = msgspec.msgpack.Decoder(Job).decode
job_from_json = msgspec.json.Decoder(Job).decode

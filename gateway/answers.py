"""The answers that are no job, batch or model, as types, for those who read them and for their description."""

from typing import Any

import msgspec

from shared.messages import Delivery, Gpu
from shared.store.budget import Budget
from shared.store.depths import Depth


class Problem(msgspec.Struct, kw_only=True):
    """An error by RFC 9457. `code` is stable; `type` leads to what is known of it; `detail` is for the person who met it."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    job_id: str = ""
    trace_id: str = ""


class ProblemKind(msgspec.Struct):
    """A kind of problem. `ends_jobs`: a job may fail with it, else only a request is refused."""

    code: str
    status: int
    title: str
    ends_jobs: bool


class ProblemKinds(msgspec.Struct):
    """All kinds of problems."""

    problems: list[ProblemKind]


class Description(msgspec.Struct):
    """What this service is and where to go on."""

    service: str
    description: str
    models: list[str]
    formats: list[str]
    max_upload_bytes: int
    endpoints: list[str]


class PredictedObject(msgspec.Struct, rename={"class_id": "class"}):
    """A detection in the predecessor's form: corners in pixels of the upright picture."""

    x1: float
    y1: float
    x2: float
    y2: float
    confidence: float
    class_id: int


class Prediction(msgspec.Struct):
    """The objects of one picture, and where the work was done."""

    detections: list[PredictedObject]
    status: str
    track: str
    preprocessing: str
    nms_location: str


class Reason(msgspec.Struct):
    """Why one picture of many has no result."""

    code: str
    detail: str


class BatchPrediction(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One picture of a batch: `status` is `success`, or `error` with its reason."""

    image_index: int
    detections: list[PredictedObject]
    num_detections: int
    status: str
    track: str | None = None
    error: Reason | None = None


class BatchPredictions(msgspec.Struct):
    """The pictures in order; `status` is `success`, `partial` or `error`."""

    results: list[BatchPrediction]
    status: str
    total_images: int
    processed_images: int
    failed_images: int
    track: str
    preprocessing: str
    nms_location: str


class Live(msgspec.Struct):
    """This process answers."""

    live: bool


class Ready(msgspec.Struct):
    """Whether a job sent now would be done."""

    ready: bool


class Readiness(msgspec.Struct):
    """Whether a job sent now would be done, and what that rests on."""

    ready: bool
    checks: dict[str, bool]


class WorkerHealth(msgspec.Struct, kw_only=True):
    """A process of the mesh, by its last heartbeat `age_ms` ago."""

    kind: str
    name: str
    host: str
    pid: int
    started_at: str
    rss_bytes: int
    cpu_percent: float
    jobs_done: int
    message_version: int
    age_ms: float
    last_error: str | None
    models: list[str]
    gpu: list[Gpu] | None
    details: dict[str, Any]


class ProcessHealth(msgspec.Struct):
    """The gateway process that answered."""

    pid: int
    rss_bytes: int
    cpu_percent: float


class ModelHealth(msgspec.Struct):
    """Whether a live worker can run the model."""

    ready: bool


class Health(msgspec.Struct):
    """Everything an operator asks first. `status` is `ok` or `degraded`."""

    status: str
    checks: dict[str, bool]
    uptime_s: float
    process: ProcessHealth
    workers: list[WorkerHealth]
    queues: dict[str, Depth]
    models: dict[str, ModelHealth]
    registry_problem: str | None
    keys_problem: str | None
    byte_budget: Budget | None
    optimizations: dict[str, Any]


class ClientPool(msgspec.Struct):
    """The workers' connections to Triton together."""

    active: bool
    connection_count: int
    triton_urls: list[str]


class Deliveries(msgspec.Struct):
    """How a callback was told so far."""

    deliveries: list[Delivery]


class ConnectionPool(msgspec.Struct):
    """The connections to Triton, together and by worker."""

    shared_client_pool: ClientPool
    workers: list[dict[str, Any]]


class TritonSays(msgspec.Struct):
    """A model's name in Triton, its state there and, where it is not ready, Triton's reason."""

    model: str
    state: str
    reason: str


class ModelSummary(msgspec.Struct, kw_only=True):
    """A model and whether it is ready."""

    name: str
    version: int
    family: str
    track: str
    ready: bool
    loaded: bool
    triton: TritonSays | None
    input_width: int
    input_height: int
    nms_location: str
    class_count: int
    confidence: float
    iou: float
    max_detections: int
    max_batch: int
    aliases: list[str]


class ModelDescription(ModelSummary, kw_only=True):
    """A model with the names of its classes."""

    labels: list[str]


class ModelList(msgspec.Struct):
    """All models, and which one is meant where none is named."""

    models: list[ModelSummary]
    default: str

"""What every service counts, for Prometheus: each metric once, with its labels, and the functions that feed them.

    a job's end ──▶ `job_ended`  ─┐
    a batch     ──▶ `batch_ran`   ├──▶ this process' registry ──▶ shared.exposition, on MESH_METRICS_PORT
    a refusal   ──▶ `refused`    ─┘

A job is counted by the process whose script ended it, so the sum over all processes is the number of jobs. Labels are
bounded: models come from the registry, statuses, stages and codes from the code. Depths, budget and workers are the
store's, not a process'; the gateway reads them at the scrape (`gateway.metrics`).
"""

from functools import lru_cache
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from shared import errors
from shared.messages import Job

STAGE_BUCKETS_S: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
)  # fmt: skip
BATCH_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FILL_BUCKETS: Final = (0.125, 0.25, 0.5, 0.75, 1.0)

STAGE_DURATION = Histogram(
    "mesh_stage_duration_seconds",
    "How long the stages of ended jobs took; `total` is from acceptance to end",
    ["stage", "model", "track"],
    buckets=STAGE_BUCKETS_S,
)
JOBS = Counter("mesh_jobs_total", "Jobs that ended; `code` is empty unless they failed or expired", ["status", "code"])
ACCEPTED = Counter("mesh_jobs_accepted_total", "Jobs accepted", ["model", "track"])
REFUSALS = Counter("mesh_admission_refusals_total", "Requests to take a picture that were refused", ["code"])
REQUESTS = Counter("mesh_http_requests_total", "HTTP requests answered", ["method", "route", "status"])
REQUEST_DURATION = Histogram(
    "mesh_http_request_duration_seconds", "How long HTTP requests took; waits that were asked for included", ["route"],
    buckets=STAGE_BUCKETS_S,
)  # fmt: skip
BATCH_SIZE = Histogram("mesh_batch_size", "Pictures in a batch that ran", ["model"], buckets=BATCH_BUCKETS)
BATCH_FILL = Histogram("mesh_batch_fill_ratio", "Pictures of a batch, of the most it may have", ["model"], buckets=FILL_BUCKETS)
TRITON_ERRORS = Counter("mesh_triton_errors_total", "Calls of Triton that failed", ["model", "code"])
DECODER_RESTARTS = Counter("mesh_decoder_restarts_total", "Decoders that died or were killed")
DECODERS = Gauge("mesh_decoders", "Decoders of this process", multiprocess_mode="livesum")
TENSOR_SLOTS = Gauge("mesh_tensor_slots", "Slots of this process' shared-memory arena", ["state"], multiprocess_mode="livesum")
STORE_RETRIES = Counter("mesh_store_retries_total", "Calls of the store that will be tried again", ["service"])


def code_label(code: str) -> str:
    """An error's code, if it is one of ours."""
    return code if code in errors.BY_CODE else errors.Internal.code


def job_ended(job: Job) -> None:
    """Count a job that was ended here, with its stages. Takes about ten microseconds."""
    JOBS.labels(job.status, code_label(job.error.code) if job.error else "").inc()
    for stage, took_ms in job.timings_ms.items():
        STAGE_DURATION.labels(stage, job.model, job.track).observe(took_ms / 1000)


def batch_ran(model: str, size: int, most: int) -> None:
    """Count a batch that the model answered."""
    BATCH_SIZE.labels(model).observe(size)
    BATCH_FILL.labels(model).observe(size / max(most, 1))


@lru_cache(1024)
def _of_requests(method: str, route: str, status: int) -> Counter:
    return REQUESTS.labels(method, route, status)


@lru_cache(256)
def _of_durations(route: str) -> Histogram:
    return REQUEST_DURATION.labels(route)


def requested(method: str, route: str, status: int, took_ms: float) -> None:
    """Count an HTTP request that was answered. Labels are looked up once: each look-up takes a lock."""
    _of_requests(method, route, status).inc()
    _of_durations(route).observe(took_ms / 1000)


@lru_cache(1024)
def _of_accepted(model: str, track: str) -> Counter:
    return ACCEPTED.labels(model, track)


def accepted(model: str, track: str) -> None:
    """Count a job that was accepted here."""
    _of_accepted(model, track).inc()


def refused(code: str) -> None:
    """Count a picture that was not taken."""
    REFUSALS.labels(code_label(code)).inc()

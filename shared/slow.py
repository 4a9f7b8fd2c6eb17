"""The log of slow jobs: which stage took long, and where the rest of the time went."""

import time

import structlog

from shared import tracing
from shared.messages import Job

NO_STAGE = "total"
"""The sum of the others and of what lies between them."""

PAUSE_S = 1.0
"""Under load every job waits long; a line a second tells as much as a thousand."""

log = structlog.get_logger()


class SlowStages:
    """Tells of jobs of which a stage took more than `slow_ms`, at most one a second, with how many went untold."""

    def __init__(self, slow_ms: float) -> None:
        self._slow_ms = slow_ms
        self._next_s = 0.0
        self._untold = 0

    def tell(self, job: Job, traceparent: str = "") -> None:
        """Log an ended job if it was slow."""
        stages = {stage: took_ms for stage, took_ms in job.timings_ms.items() if stage != NO_STAGE}
        slowest = max(stages, key=stages.__getitem__, default="")
        if not slowest or stages[slowest] <= self._slow_ms:
            return
        if time.monotonic() < self._next_s:
            self._untold += 1
            return
        self._next_s = time.monotonic() + PAUSE_S
        untold, self._untold = self._untold, 0
        log.warning(
            "job.slow", job_id=job.id, trace_id=tracing.trace_id(traceparent), model=job.model, track=job.track,
            status=job.status, slowest=slowest, slowest_ms=stages[slowest], timings_ms=job.timings_ms,
            batch_size=job.batch_size, untold=untold,
        )  # fmt: skip

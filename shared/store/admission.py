"""Who is let in when there is more work than the mesh can do, and when the others should come back.

Redis decides (`accept.lua`, by bytes and by the length of the queue); this module measures how fast work ends, so that the
limit of the queue and every Retry-After are true, and refuses at once what Redis would refuse again.

The rate is what the results stream has counted up over the last seconds. It is lowered only while much waits: a mesh that
has little to do is not slow.
"""

import asyncio
import math
import time
from collections import deque

from redis.exceptions import ResponseError

from shared.errors import MeshError, Overloaded
from shared.store import keys
from shared.store.connection import Connection

SAMPLE_S = 1.0
WINDOW_S = 5.0
"""A sample older than this says nothing about the rate of today."""

FEW = 64
"""With fewer open jobs the mesh may be idle in part, and a low rate means nothing."""

LEAST_OPEN = 256
"""So many jobs may be open whatever the rate: it is measured only once there is a queue."""

SHUT_S = 0.1
"""After a refusal the door stays shut for this long; what ends meanwhile is little beside a full queue."""

MOST_S = 60
SMOOTHING = 0.3


class Admission:
    """One gateway process' view of how full the mesh is."""

    def __init__(self, connection: Connection, partitions: int, max_queue_s: float) -> None:
        self._connection = connection
        self._partitions = range(partitions)
        self._max_queue_s = max_queue_s
        self._shut_until_s = 0.0
        self._sampled_s = float("-inf")
        self._ended: int | None = None
        self._open = 0
        self._reserved_bytes = 0
        self._sampling: asyncio.Task[None] | None = None
        self._promised: deque[float] = deque()
        self.rate_per_s = 0.0
        """Jobs that end in a second when there is enough to do; 0 while that is not known."""

    def check(self) -> None:
        """Refuse at once, before anything of a request is read, while the mesh is known to be full.

        Raises:
            Overloaded: it is.
        """
        if time.monotonic() < self._shut_until_s:
            raise self._overloaded("the mesh has more work than it can do", 0)

    def most_open(self) -> int:
        """How many jobs a partition may have open: as many as end within `MESH_MAX_QUEUE_S`; 0 sets no limit."""
        self._sample_if_due()
        if not self.rate_per_s:
            return 0
        return math.ceil(max(LEAST_OPEN, self.rate_per_s * self._max_queue_s) / len(self._partitions))

    def full(self, why: str, *, too_many_bytes: int = 0, too_many_jobs: int = 0) -> Overloaded:
        """The error for what Redis refused; the door is shut for a moment."""
        self._shut_until_s = time.monotonic() + SHUT_S
        mean_bytes = self._reserved_bytes / self._open if self._open else 0
        return self._overloaded(why, max(too_many_jobs, too_many_bytes / mean_bytes if mean_bytes else 0))

    def _overloaded(self, why: str, jobs: float) -> Overloaded:
        return Overloaded(why, retry_after_s=self.retry_after_s(jobs))

    def retry_after_s(self, jobs: float) -> int:
        """When there should be room, if `jobs` must end first: whoever was sent away earlier comes back before."""
        now_s = time.monotonic()
        while self._promised and self._promised[0] <= now_s:
            self._promised.popleft()
        wait_s = (jobs + len(self._promised) + 1) / self.rate_per_s if self.rate_per_s else 1.0
        answer_s = min(max(math.ceil(wait_s), 1), MOST_S)
        if answer_s < MOST_S:
            self._promised.append(max(now_s + wait_s, self._promised[-1] if self._promised else 0.0))
        return answer_s

    # --- measuring -----------------------------------------------------------------------------------------------

    def _sample_if_due(self) -> None:
        if time.monotonic() - self._sampled_s < SAMPLE_S or (self._sampling and not self._sampling.done()):
            return
        self._sampling = asyncio.create_task(self._sample())

    async def _sample(self) -> None:
        try:
            books = await self._connection.run(
                *(("HGET", keys.reserved(partition), "") for partition in self._partitions),
                *(("ZCARD", keys.live(partition)) for partition in self._partitions),
            )
            stream = await self._connection.run_one("XINFO", "STREAM", keys.RESULTS_STREAM)
        except (MeshError, ResponseError):  # Redis is away, which others tell, or no job has ever ended
            self._ended = None
            return
        finally:
            before_s, self._sampled_s = self._sampled_s, time.monotonic()
        fields = dict(zip(stream[::2], stream[1::2], strict=True))
        count = len(self._partitions)
        self._reserved_bytes = sum(int(total or 0) for total in books[:count])
        self.observe(int(fields[b"entries-added"]), sum(int(number) for number in books[count:]), self._sampled_s - before_s)

    def observe(self, ended: int, open_jobs: int, window_s: float) -> None:
        """Take a sample: jobs ended since ever, jobs open now, and the time since the last sample."""
        before, was_open = self._ended, self._open
        self._ended, self._open = ended, open_jobs
        if before is None or ended < before or not 0 < window_s <= WINDOW_S:
            return
        rate = (ended - before) / window_s
        if min(was_open, open_jobs) >= FEW:
            smoothed = self.rate_per_s + SMOOTHING * (rate - self.rate_per_s) if self.rate_per_s else rate
            self.rate_per_s = max(smoothed, 1.0)
        elif self.rate_per_s:
            self.rate_per_s = max(self.rate_per_s, rate)

    async def close(self) -> None:
        """End what is under way."""
        if self._sampling:
            self._sampling.cancel()
            await asyncio.gather(self._sampling, return_exceptions=True)

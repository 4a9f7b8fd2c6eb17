"""Who is let in when there is more work than the mesh can do, and when the others should come back.

    the door, in each gateway process              Redis, for all of them
    check: jobs open when last counted      ──▶    accept: jobs open now, by the same limit;
           + accepted here since                   bytes against the budget
           - ended since, by the rate

The door costs nothing and is asked before anything of a request is read, so that Redis hardly ever has to refuse a picture
that has come already. The limit is what ends within `MESH_MAX_QUEUE_S`, by the rate at which the results stream grew while
there was enough to do. Before that is known no more are let in than it takes to learn it: a queue that is filled at the rate
of those who send may be minutes long when the rate is known.
"""

import asyncio
import math
import time
from collections import deque

from redis.exceptions import ResponseError

from shared.errors import MeshError, Overloaded
from shared.store import keys
from shared.store.connection import Connection

SAMPLE_S = 0.25
LEARN_S = 0.75
"""A rate is taken from at least so much time: batches end together."""

WINDOW_S = 4.0
"""A sample older than this says nothing about the rate of now."""

STALE_S = 1.0
"""After so long without a sample nobody knows how full the mesh is: the door is open, and Redis decides."""

FEW = 64
"""With fewer open jobs the mesh may be idle in part, and a low rate means nothing."""

LEAST_OPEN = 256
"""So many jobs may be open whatever the rate: it is measured only while there is a queue."""

START_OPEN = 512
"""So many may be open while the rate is not known."""

DOOR_SHARE = 0.97
"""Of the limit, where the door shuts: several doors, and what is on its way through one, stay under what Redis takes."""

SHUT_S = 0.1
"""After a refusal by Redis the door stays shut for this long: it was wrong."""

MOST_S = 60
SMOOTHING = 0.1
BUSY = "the mesh has more work than it can do in time"


class Admission:
    """One gateway process' view of how full the mesh is."""

    def __init__(self, connection: Connection, partitions: int, max_queue_s: float) -> None:
        self._connection = connection
        self._partitions = range(partitions)
        self._max_queue_s = max_queue_s
        self._shut_until_s = 0.0
        self._sampled_s = float("-inf")
        self._tried_s = float("-inf")
        self._ended = 0
        self._busy: deque[tuple[float, int]] = deque()
        """When, and how many had ended by then, while there was enough to do."""
        self._open = 0
        self._accepted = 0
        self._share = 1.0
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
        if wait_s := self.wait_s():
            raise Overloaded(BUSY, retry_after_s=wait_s)

    def wait_s(self) -> int:
        """0 if there is room for one more job, else in how many seconds there should be."""
        self._sample_if_due()
        now_s = time.monotonic()
        excess = self.open_now(now_s) - self._limit() * DOOR_SHARE if now_s - self._sampled_s < STALE_S else -1.0
        if excess < 0 and now_s >= self._shut_until_s:
            return 0
        return self.retry_after_s(max(excess, 0))

    def open_now(self, now_s: float) -> float:
        """How many jobs should be open by now, as this process knows it."""
        return self._open + self._accepted - self.rate_per_s * (now_s - self._sampled_s)

    def accepted(self) -> None:
        """Count a job that was accepted here."""
        self._accepted += 1

    def most_open(self) -> int:
        """How many jobs a partition may have open: as many as end within `MESH_MAX_QUEUE_S`."""
        self._sample_if_due()
        return math.ceil(self._limit() / len(self._partitions))

    def full(self, why: str, *, too_many_bytes: int = 0, too_many_jobs: int = 0) -> Overloaded:
        """The error for what Redis refused; the door is shut for a moment."""
        self._shut_until_s = time.monotonic() + SHUT_S
        mean_bytes = self._reserved_bytes / self._open if self._open else 0
        jobs = max(too_many_jobs, too_many_bytes / mean_bytes if mean_bytes else 0)
        return Overloaded(why, retry_after_s=self.retry_after_s(jobs))

    def retry_after_s(self, jobs: float) -> int:
        """When there should be room, if `jobs` must end first: whoever was sent away earlier comes back before."""
        now_s = time.monotonic()
        while self._promised and self._promised[0] <= now_s:
            self._promised.popleft()
        rate = self.rate_per_s * self._share
        wait_s = (jobs * self._share + len(self._promised) + 1) / rate if rate else 1.0
        answer_s = min(max(math.ceil(wait_s), 1), MOST_S)
        if answer_s < MOST_S:
            self._promised.append(max(now_s + wait_s, self._promised[-1] if self._promised else 0.0))
        return answer_s

    def _limit(self) -> float:
        return max(LEAST_OPEN, self.rate_per_s * self._max_queue_s) if self.rate_per_s else START_OPEN

    # --- measuring -----------------------------------------------------------------------------------------------

    def _sample_if_due(self) -> None:
        now_s = time.monotonic()
        if now_s - self._tried_s < SAMPLE_S or (self._sampling and not self._sampling.done()):
            return
        self._tried_s = now_s
        self._sampling = asyncio.create_task(self._sample())

    async def _sample(self) -> None:
        accepted = self._accepted
        try:
            books = await self._connection.run(
                *(("HGET", keys.reserved(partition), "") for partition in self._partitions),
                *(("ZCARD", keys.live(partition)) for partition in self._partitions),
            )
            ended = await self._count_ended()
        except MeshError:  # Redis is away, which others tell
            self._busy.clear()
            return
        count = len(self._partitions)
        self._reserved_bytes = sum(int(total or 0) for total in books[:count])
        self._accepted -= accepted  # those are among the open now, or have ended
        self.observe(ended, sum(int(number) for number in books[count:]), time.monotonic(), accepted)

    async def _count_ended(self) -> int:
        """How many jobs have ever ended."""
        streams = {keys.results(partition, in_cluster=self._connection.is_cluster) for partition in self._partitions}
        return sum([await self._count_told(stream) for stream in streams])

    async def _count_told(self, stream: str) -> int:
        try:
            told = await self._connection.run_one("XINFO", "STREAM", stream)
        except ResponseError:  # no job has ended
            return 0
        return int(dict(zip(told[::2], told[1::2], strict=True))[b"entries-added"])

    def observe(self, ended: int, open_jobs: int, now_s: float, accepted: int = 0) -> None:
        """Take a sample: jobs ended since ever, jobs open now, when that was, and jobs accepted here since the last one."""
        before_s, before, was_open = self._sampled_s, self._ended, self._open
        self._sampled_s, self._ended, self._open = now_s, ended, open_jobs
        busy = self._busy
        if now_s - before_s > WINDOW_S or ended < before or open_jobs < FEW:  # a pause, an emptied Redis, or little to do
            busy.clear()
        # What all gateways have accepted since is what has ended, and what has come to be open.
        if accepted and now_s - before_s <= WINDOW_S and (everywhere := ended - before + open_jobs - was_open) > 0:
            self._share += SMOOTHING * (min(accepted / everywhere, 1.0) - self._share)
        if open_jobs < FEW:
            return
        busy.append((now_s, ended))
        while now_s - busy[0][0] > WINDOW_S:
            busy.popleft()
        first_s, first = busy[0]
        if now_s - first_s >= LEARN_S:
            self.rate_per_s = max((ended - first) / (now_s - first_s), 1.0)

    async def close(self) -> None:
        """End what is under way."""
        if self._sampling:
            self._sampling.cancel()
            await asyncio.gather(self._sampling, return_exceptions=True)

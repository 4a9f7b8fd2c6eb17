"""The books of a chaos run: what was accepted, and how often each job's end was seen."""

import asyncio
import itertools
import time
from collections import Counter

import msgspec
import redis.asyncio as redis
from redis.exceptions import RedisError

from shared.messages import Job

RESULTS = "mesh:stream:results"


class Books:
    """Accepted IDs against the ends that the results stream tells."""

    def __init__(self, after: str = "0") -> None:
        """`after` is the entry of the results stream from which on ends are looked at."""
        self.accepted: dict[str, float] = {}
        """Job ID -> when it was accepted, by this process' monotonic clock."""
        self.ends: Counter[str] = Counter()
        self.ended_at: dict[str, float] = {}
        """Job ID -> when its first end was seen, by the same clock."""
        self.statuses: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self._last = after

    @property
    def open(self) -> set[str]:
        """Accepted jobs whose end was not seen."""
        return self.accepted.keys() - self.ends.keys()

    def latest(self) -> list[tuple[str, float]]:
        """The jobs accepted last, with their times."""
        return list(itertools.islice(reversed(self.accepted.items()), 300))

    @property
    def twice(self) -> list[str]:
        """Jobs that ended more than once."""
        return [job_id for job_id, times in self.ends.items() if times > 1]

    async def read_forever(self, url: str) -> None:
        """Follow the results stream, across restarts of Redis."""
        client = redis.Redis.from_url(url, socket_timeout=5)
        try:
            while True:
                try:
                    answer = await client.xread({RESULTS: self._last}, count=1000, block=500)
                except (RedisError, OSError, TimeoutError):
                    await asyncio.sleep(0.2)
                    continue
                for entry_id, fields in answer[0][1] if answer else ():
                    self._last = entry_id
                    job = msgspec.msgpack.decode(fields[b"job"], type=Job)
                    self.ends[job.id] += 1
                    self.ended_at.setdefault(job.id, time.monotonic())
                    self.statuses[
                        job.status if job.error is None else f"{job.status}/{job.error.code}: {job.error.detail}"
                    ] += 1
        finally:
            await client.aclose()

    async def closed(self, within_s: float) -> bool:
        """Wait until every accepted job has ended; whether it did in time."""
        try:
            async with asyncio.timeout(within_s):
                while self.open:  # noqa: ASYNC110 - polled in one place, rather than an event set in many
                    await asyncio.sleep(0.1)
        except TimeoutError:
            return False
        return True

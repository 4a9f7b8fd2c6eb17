"""Dead letters: jobs that failed though their pictures may be good, kept with their pictures until they are replayed.

`end.lua` buries them (`JobError.is_ours` says which); a replay is a new job, for the end of the old one stays what it was.
"""

from shared.errors import ExpiredJob
from shared.messages import Job
from shared.models import Registry
from shared.store import keys
from shared.store.connection import Connection
from shared.store.jobs import Jobs

REPLAY_KEY = "replay:"
"""The idempotency key of a replay: two operators at once, or one whose answer was lost, start it once."""


class DeadLetters:
    """Lists, replays and drops them."""

    def __init__(self, connection: Connection, partitions: int, jobs: Jobs) -> None:
        self._connection = connection
        self._partitions = range(partitions)
        self._jobs = jobs

    async def list(self) -> list[Job]:
        """All of them, the latest first."""
        found: list[tuple[int, str]] = []
        for partition in self._partitions:
            raw = await self._connection.run_one("ZREVRANGE", keys.dead(partition), 0, -1, "WITHSCORES")
            found += [(int(at), bytes(job_id).decode()) for job_id, at in zip(raw[::2], raw[1::2], strict=True)]
        letters: list[Job] = []
        for _, job_id in sorted(found, reverse=True):
            try:
                letters.append(await self._jobs.read(job_id))
            except ExpiredJob:
                continue
        return letters

    async def replay(self, job_id: str, registry: Registry) -> Job:
        """Accept the picture of a dead letter again, as a new job of the same tenant, and forget the letter.

        Raises:
            InvalidParameter: the job has not ended.
            UploadLost: its picture is no longer kept.
            UnknownJob, ExpiredJob: there is no such job (any more).
            UnknownModel: the registry no longer has its model.
            Overloaded, StoreUnavailable: not now; the letter stays.
        """
        job = await self._jobs.accept_again(job_id, registry, REPLAY_KEY + job_id)
        await self.drop(job_id)
        return job

    async def drop(self, job_id: str) -> None:
        """Forget a dead letter and its picture; the job stays readable for as long as it was."""
        partition = self._jobs.partition(job_id)
        await self._connection.run(
            ("ZREM", keys.dead(partition), job_id),
            ("DEL", keys.upload(partition, job_id)),
            ("HDEL", keys.job(partition, job_id), "options"),
        )

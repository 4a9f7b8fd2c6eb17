"""Pictures as they were sent: staged in chunks before a job is accepted, fetched once by a preprocess worker."""

from collections.abc import Sequence

from shared.access import NOBODY, Tenant
from shared.errors import TooManyRequests, UploadLost
from shared.messages import Ticket
from shared.store import keys
from shared.store.admission import Admission
from shared.store.budget import ByteBudget
from shared.store.connection import Connection
from shared.store.ids import Ids

FULL = "the mesh holds as many bytes as it may"
SHARE_FULL = "this tenant's jobs hold as many bytes as they may"


class Uploads:
    """Uploads in Redis, a string each.

    A staged upload survives its last chunk by `staging_s`; one whose gateway died is left to this and to the sweep.
    """

    def __init__(self, connection: Connection, ids: Ids, budget: ByteBudget, admission: Admission, staging_s: float) -> None:
        self._staging_ms = int(staging_s * 1000)
        self._connection = connection
        self._ids = ids
        self._budget = budget
        self._admission = admission

    async def append(self, job_id: str, chunk: bytes, tenant: Tenant = NOBODY) -> None:
        """Stage one chunk and reserve its bytes.

        Raises:
            Overloaded, TooManyRequests: the byte budget or the tenant's share is spent; nothing of this chunk is kept.
            StoreUnavailable: Redis does not answer.
        """
        partition = self._ids.partition(job_id)
        limit = await self._budget.limit_bytes()
        (kept,) = await self._connection.run(
            self._connection.call(
                "stage",
                [keys.upload(partition, job_id), keys.live(partition), keys.reserved(partition)],
                job_id, chunk, limit, self._staging_ms, tenant.name, int(limit * tenant.byte_share),
            )
        )  # fmt: skip
        verdict, *details = kept
        if bytes(verdict) == b"full":
            raise self._admission.full(FULL, too_many_bytes=int(details[0]) - limit)
        if bytes(verdict) == b"share":
            raise TooManyRequests(SHARE_FULL, retry_after_s=self._admission.retry_after_s(0))

    async def discard(self, job_id: str) -> None:
        """Drop what is staged under an ID that was not accepted, and give its reservation back."""
        partition = self._ids.partition(job_id)
        await self._connection.run(
            self._connection.call(
                "discard",
                [
                    keys.upload(partition, job_id), keys.live(partition), keys.reserved(partition),
                    keys.job(partition, job_id),
                ],
                job_id,
            )
        )  # fmt: skip

    async def get_many(self, tickets: Sequence[Ticket]) -> list[bytes | None]:
        """The pictures of these jobs in order, in one round trip; `None` where one is gone."""
        wanted = (("GET", keys.upload(ticket.partition, ticket.id)) for ticket in tickets)
        return await self._connection.run(*wanted) if tickets else []

    async def get(self, ticket: Ticket) -> bytes:
        """The picture of a claimed job.

        Raises:
            UploadLost: it is gone, which only a job that ended meanwhile explains.
        """
        data = await self._connection.run_one("GET", keys.upload(ticket.partition, ticket.id))
        if data is None:
            raise UploadLost("the upload is no longer kept")
        return bytes(data)

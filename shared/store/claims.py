"""Claims: what workers do to jobs between accepting and ending; only the last claim's fence fits.

queue ──take──▶ ticket ──decoded──▶ next queue        release, redecode ──▶ back to a queue
  └──────claim (of a lost worker's entry)
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import structlog

from shared.errors import UploadLost
from shared.messages import MESSAGE_VERSION, Affine, ImageInfo, Placement, Ticket
from shared.settings import Settings
from shared.store import keys
from shared.store.clock import Clock
from shared.store.connection import Command, Connection
from shared.store.fields import PUBLIC, pack, processing, ticket_of
from shared.store.heartbeats import pairs
from shared.store.tensors import Tensor, TensorStore

PICTURE_BYTES = 1 << 20
"""A picture up to this size comes along when its job is taken; a larger one is fetched on its own, past small ones."""

_STEPS = {"preprocess": "decoding"}
"""Queue -> what a job that is taken from it is doing then; `inferring` for all others."""


NEWER = b"newer"
"""What a script says of a job whose messages are of a version above ours."""

log = structlog.get_logger()


class Taken(NamedTuple):
    """The newest entry's ID, what was claimed, and how many jobs of a newer version were met and put back at the end."""

    newest: str
    tickets: list[Ticket]
    newer: int


class Claims:
    """All that a worker does to a job before its end."""

    def __init__(self, connection: Connection, settings: Settings, clock: Clock, tensors: TensorStore) -> None:
        self._connection = connection
        self._clock = clock
        self._tensors = tensors
        self._result_ttl_ms = int(settings.result_ttl_s * 1000)
        self._public = PUBLIC[settings.event_encoding]

    async def take(self, partition: int, stage: str, consumer: str, at_most: int, told: Iterable[Ticket] = ()) -> Taken:
        """Claim new entries of a queue. Small pictures come along for decoding. Who follows the jobs `told` hears, by the way,
        that they are being worked on.

        Raises:
            UnknownGroup: the queue's group is gone: Redis was emptied.
            StoreUnavailable: Redis does not answer.
        """
        step = _STEPS.get(stage, "inferring")
        *_, answer = await self._connection.run(
            *self._announcements(told),
            self._connection.call(
                "take",
                [keys.queue(partition, stage), *keys.never(partition, in_cluster=self._connection.is_cluster)],
                keys.GROUP, consumer, at_most, step,
                keys.job(partition, ""), keys.upload(partition, "") if step == "decoding" else "", PICTURE_BYTES,
                MESSAGE_VERSION,
            )
        )  # fmt: skip
        newest, newer, *taken = answer
        tickets: list[Ticket] = []
        for entry_id, job_id, fields, picture in taken:
            if ticket := _understood(partition, bytes(entry_id).decode(), bytes(job_id).decode(), pairs(fields)):
                ticket.picture = picture
                tickets.append(ticket)
        return Taken(bytes(newest).decode(), tickets, int(newer))

    async def claim(self, partition: int, stage: str, entries: Sequence[tuple[str, str]]) -> list[Ticket]:
        """Claim entries that were taken over, pairs of entry ID and job ID. What has ended or moved on is left out, and what is
        of a newer version goes back to its queue."""
        step = _STEPS.get(stage, "inferring")
        answers = await self._connection.run(
            *(
                self._connection.call(
                    "claim", [keys.job(partition, job_id), keys.queue(partition, stage)],
                    entry_id, keys.GROUP, step, job_id, MESSAGE_VERSION,
                )
                for entry_id, job_id in entries
            )
        )  # fmt: skip
        return [
            ticket
            for (entry_id, job_id), answer in zip(entries, answers, strict=True)
            if answer and answer != NEWER and (ticket := _understood(partition, entry_id, job_id, pairs(answer)))
        ]

    def _announcements(self, tickets: Iterable[Ticket]) -> list[Command]:
        return [
            ("PUBLISH", channel, self._public(processing(ticket)))
            for ticket in tickets
            for channel in keys.channels_of(ticket.id, ticket.tenant)
        ]

    async def decoded(
        self,
        ticket: Ticket,
        *,
        image: ImageInfo,
        placement: Placement,
        tensor: Tensor,
        timings_ms: dict[str, float],
        slot: str = "",
        affine: Affine | None = None,
    ) -> bool:
        """Hand a decoded picture to inference. False: the job ended or another worker has it; the tensor is dropped.

        Where a `slot` of shared memory is named, the tensor lies there, and is not stored. With an `affine` there is no tensor:
        inference reads the upload itself.
        """
        name = keys.tensor(ticket.partition, ticket.id, ticket.fence)
        ttl_ms = max(int(ticket.deadline_ms - self._clock.now_ms()) + self._result_ttl_ms, 1000)
        *_, kept = await self._connection.run(
            *([] if slot or affine else [self._tensors.put(name, tensor, ttl_ms)]),
            self._connection.call(
                "decoded",
                [
                    keys.job(ticket.partition, ticket.id), keys.upload(ticket.partition, ticket.id), name,
                    keys.queue(ticket.partition, "preprocess"),
                    keys.queue(ticket.partition, f"inference:{ticket.served_as}"), keys.live(ticket.partition),
                ],
                ticket.id, ticket.fence, ticket.entry_id, keys.GROUP, "1", "slot", slot,
                "affine", pack(affine) if affine else b"", "served_as", ticket.served_as, "v", MESSAGE_VERSION,
                "image", pack(image), "placement", pack(placement),
                "timings", pack(ticket.timings_ms | timings_ms), "decoded_ms", int(self._clock.now_ms()),
            ),
        )  # fmt: skip
        return bool(kept)

    async def release(self, ticket: Ticket) -> bool:
        """Give a claimed job back to the end of its queue."""
        stage = "preprocess" if ticket.tensor is None else f"inference:{ticket.served_as}"
        (kept,) = await self._connection.run(
            self._connection.call(
                "release",
                [keys.job(ticket.partition, ticket.id), keys.queue(ticket.partition, stage)],
                ticket.id, ticket.fence, ticket.entry_id, keys.GROUP,
            )
        )  # fmt: skip
        return bool(kept)

    async def redecode(self, ticket: Ticket) -> bool:
        """Have a picture decoded again whose tensor cannot be reached. False: the fence is lost or the job ended.

        Raises:
            UploadLost: there is nothing to decode any more.
        """
        (kept,) = await self._connection.run(
            self._connection.call(
                "redecode",
                [
                    keys.job(ticket.partition, ticket.id), keys.upload(ticket.partition, ticket.id),
                    keys.queue(ticket.partition, f"inference:{ticket.served_as}"), keys.queue(ticket.partition, "preprocess"),
                ],
                ticket.id, ticket.fence, ticket.entry_id, keys.GROUP,
            )
        )  # fmt: skip
        if kept < 0:
            raise UploadLost("the decoded picture is no longer kept")
        return bool(kept)

    async def slots_of(self, tickets: Sequence[Ticket]) -> list[str]:
        """The slot of shared memory that each job's tensor is in now; empty where it is in none (any more)."""
        found = await self._connection.run(*(("HGET", keys.job(each.partition, each.id), "slot") for each in tickets))
        return [bytes(slot or b"").decode() for slot in found]

    async def crashed(self, ticket: Ticket) -> int:
        """Count a decoder's crash on this job's picture; returns how many there were."""
        return int(await self._connection.run_one("HINCRBY", keys.job(ticket.partition, ticket.id), "crashes", 1))


def _understood(partition: int, entry_id: str, job_id: str, fields: dict[bytes, bytes]) -> Ticket | None:
    """The ticket; `None` of a job that breaks the promise of its version: it stays pending, for others after its lease."""
    try:
        return ticket_of(partition, entry_id, job_id, fields)
    except (ValueError, KeyError) as error:  # msgspec's are ValueErrors
        log.warning("job.not_understood", job_id=job_id, error=f"{type(error).__name__}: {error}")
        return None

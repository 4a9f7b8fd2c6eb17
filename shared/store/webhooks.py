"""What callbacks are to be told, and what became of it.

    end, batch_seal ──▶ outbox ──take──▶ whoever delivers, who keeps it safe elsewhere ──done──▶ gone
                                              └──log──▶ the subject's log of deliveries

An entry is written in the very step that ends its job, and stays until it is `done`: one whose taker died is taken again.
"""

import time
from typing import Any

import msgspec

from shared.errors import StoreUnavailable
from shared.messages import Delivery
from shared.settings import Settings
from shared.store import keys
from shared.store.connection import Connection
from shared.store.heartbeats import pairs
from shared.store.jobs import Jobs

MOST_BLOCK_S = 30.0
"""No read of the outbox is asked to block for longer."""

CLAIM_AFTER_S = 15.0
LOG_LENGTH = 50
LOG_TTL_S = 24 * 3600.0
"""As long as the last try may come after the end, and as a job's result at least."""

_pack = msgspec.msgpack.Encoder().encode
_delivery = msgspec.msgpack.Decoder(Delivery).decode


class Due(msgspec.Struct, frozen=True):
    """An end to be told: of the job or batch `subject_id` to `url`. `result` is a job's, in MessagePack; empty of a batch."""

    partition: int
    entry_id: str
    kind: str
    subject_id: str
    url: str
    result: bytes


class Webhooks:
    """The outboxes of all partitions, and the logs."""

    def __init__(self, connection: Connection, settings: Settings, jobs: Jobs) -> None:
        self._connection = connection
        self._jobs = jobs
        self._partitions = settings.partitions
        self._log_ttl_ms = int(max(settings.result_ttl_s, LOG_TTL_S) * 1000)
        self._claim_at_s = 0.0
        self._turn = 0

    async def take(self, consumer: str, at_most: int, block_s: float) -> list[Due]:
        """What is to be told next, waiting up to `block_s` for it; first what another taker has not been done with.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        due: list[Due] = []
        failure: StoreUnavailable | None = None
        if time.monotonic() >= self._claim_at_s:
            for partition in range(self._partitions):
                try:
                    answer = await self._read(
                        partition, "XAUTOCLAIM", keys.outbox(partition), keys.GROUP, consumer, int(CLAIM_AFTER_S * 1000), "0-0",
                        "COUNT", at_most,
                    )  # fmt: skip
                except StoreUnavailable as error:  # one of several may be away; the others' callbacks are told
                    failure = error
                else:
                    due += _entries(partition, answer[1] if answer else [])
            if not due:
                self._claim_at_s = time.monotonic() + CLAIM_AFTER_S
        for step in range(self._partitions):
            if due:
                break
            partition = (self._turn + step) % self._partitions
            block_ms = max(int(block_s * 1000 / self._partitions), 1)
            try:
                answer = await self._read(
                    partition, "XREADGROUP", "GROUP", keys.GROUP, consumer, "COUNT", at_most, "BLOCK", block_ms,
                    "STREAMS", keys.outbox(partition), ">",
                )  # fmt: skip
            except StoreUnavailable as error:
                failure = error
            else:
                due += _entries(partition, answer[0][1] if answer else [])
        self._turn += 1  # each is the first in its turn, or one that is busy would keep the others waiting
        if failure and not due:
            raise failure
        return due

    async def done(self, due: Due) -> None:
        """Take an entry out: it is safe elsewhere, or there is nothing more to tell."""
        outbox = keys.outbox(due.partition)
        await self._connection.run(("XACK", outbox, keys.GROUP, due.entry_id), ("XDEL", outbox, due.entry_id))

    async def log(self, subject_id: str, delivery: Delivery) -> None:
        """Add a try to the log of a job or batch."""
        key = keys.deliveries(self._jobs.partition(subject_id), subject_id)
        await self._connection.run(
            ("RPUSH", key, _pack(delivery)), ("LTRIM", key, -LOG_LENGTH, -1), ("PEXPIRE", key, self._log_ttl_ms)
        )

    async def deliveries(self, subject_id: str) -> list[Delivery]:
        """The tries of a job's or batch's callback so far, oldest first.

        Raises:
            UnknownJob: the ID was never given.
        """
        key = keys.deliveries(self._jobs.partition(subject_id), subject_id)
        return [_delivery(value) for value in await self._connection.run_one("LRANGE", key, 0, -1)]

    async def _read(self, partition: int, *command: Any) -> Any:
        answer = await self._connection.read_group("outbox", MOST_BLOCK_S, *command)
        if answer is None:  # there has been nothing to tell for days, or ever
            outbox = keys.outbox(partition)
            await self._connection.make_group(outbox, keys.GROUP)
            await self._connection.run_one("PEXPIRE", outbox, int(LOG_TTL_S * 3000))
        return answer


def _entries(partition: int, raw: list[Any]) -> list[Due]:
    due: list[Due] = []
    for entry_id, fields in raw:
        if fields:
            of = pairs(fields)
            due.append(
                Due(
                    partition,
                    bytes(entry_id).decode(),
                    of[b"kind"].decode(),
                    of[b"id"].decode(),
                    of[b"url"].decode(),
                    of[b"body"],
                )
            )
    return due

"""A consumer of one stage's queue: a Redis stream per partition, read as a consumer group, with leases.

`take` gives tickets, each a claimed job. A ticket's lease is the idle time of its entry in the group's pending list; this
module renews it until the worker says `done`. An entry whose worker died stays pending, and the next `take` of any other
worker claims it (XAUTOCLAIM) once the lease is over. When Redis is away, `take` waits and returns nothing; entries it
could not claim stay pending and come back the same way.
"""

import asyncio
import contextlib
import random
import time
from typing import Any

import structlog

from shared.errors import MeshError, StoreUnavailable
from shared.messages import Ticket
from shared.store import keys
from shared.store.claims import Claims, Taken
from shared.store.connection import Connection, UnknownGroup
from shared.store.heartbeats import pairs

RETRY_LEAST_S, RETRY_MOST_S = 0.1, 2.0

PAST_NEWER, NEWER_PAUSE_S = 8, 0.5
"""How often in a row a take may find nothing but jobs of newer versions, and the pause then."""

log = structlog.get_logger()


class Consumer:
    """One worker's seat at one stage's queue. Use as an async context manager."""

    def __init__(
        self, connection: Connection, claims: Claims, *, stage: str, name: str, partitions: int, lease_s: float
    ) -> None:
        self.stage = stage
        self.name = name
        self._connection = connection
        self._claims = claims
        self._partitions = range(partitions)
        self._lease_s = lease_s
        self._held: dict[tuple[str, int], Ticket] = {}
        self._reclaim_at_s = 0.0
        self._retry_s = RETRY_LEAST_S
        self._renewer: asyncio.Task[None] | None = None
        self._announcing: set[asyncio.Task[None]] = set()
        self._grouped = False
        self._partition = 0

    async def __aenter__(self) -> "Consumer":
        self._renewer = asyncio.create_task(self._renew_forever())
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._announcing, *([self._renewer] if self._renewer else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self._held:
            # Only an empty seat is taken away: DELCONSUMER would strand what is still pending on it.
            with contextlib.suppress(MeshError, Exception):
                for partition in self._partitions:
                    await self._leave(partition)

    async def take(self, at_most: int, block_s: float = 2.0) -> list[Ticket]:
        """Claim up to `at_most` jobs, waiting up to `block_s` for the first. May return an empty list."""
        try:
            if not self._grouped:
                await self._make_groups()
            tickets: list[Ticket] = []
            for partition, found in await self._abandoned(at_most):
                tickets += await self._claims.claim(partition, self.stage, found)
            tickets = tickets or await self._new(at_most, block_s)
        except UnknownGroup:
            self._grouped = False
            return []
        except StoreUnavailable as error:
            log.warning("queue.unavailable", stage=self.stage, error=error.detail, retry_s=round(self._retry_s, 1))
            await asyncio.sleep(random.uniform(0, self._retry_s))  # noqa: S311 - jitter needs no secrecy
            self._retry_s = min(self._retry_s * 2, RETRY_MOST_S)
            return []
        self._retry_s = RETRY_LEAST_S
        for ticket in tickets:
            self._held[ticket.id, ticket.fence] = ticket
        if tickets and self.stage == "preprocess":
            task = asyncio.create_task(self._announce(tickets))
            self._announcing.add(task)
            task.add_done_callback(self._announcing.discard)
        return tickets

    def done(self, ticket: Ticket) -> None:
        """Stop renewing a ticket's lease: the job was handed on, ended or given back."""
        self._held.pop((ticket.id, ticket.fence), None)

    async def _announce(self, tickets: list[Ticket]) -> None:
        with contextlib.suppress(MeshError):  # an event that nobody hears is no harm: the job can always be read
            await self._claims.announce(tickets)

    async def _make_groups(self) -> None:
        for partition in self._partitions:
            await self._connection.make_group(keys.queue(partition, self.stage), keys.GROUP)
        self._grouped = True

    async def _abandoned(self, at_most: int) -> list[tuple[int, list[tuple[str, str]]]]:
        """Entries whose lease is over, looked for a few times in a lease's length."""
        if time.monotonic() < self._reclaim_at_s:
            return []
        found: list[tuple[int, list[tuple[str, str]]]] = []
        for partition in self._partitions:
            answer = await self._read(
                0.0,
                "XAUTOCLAIM", keys.queue(partition, self.stage), keys.GROUP, self.name, int(self._lease_s * 1000), "0-0",
                "COUNT", at_most,
            )  # fmt: skip
            entries = _entries(answer[1]) if answer else []
            # What this very worker holds is renewed, so it can only come up here if renewing failed for a lease's length.
            if entries:
                log.info("queue.reclaimed", stage=self.stage, entries=len(entries))
                found.append((partition, entries))
        if not found:  # as long as there are some, look again at once
            self._reclaim_at_s = time.monotonic() + self._lease_s / 4 * random.uniform(0.8, 1.2)  # noqa: S311
        return found

    async def _new(self, at_most: int, block_s: float) -> list[Ticket]:
        """New jobs. With several partitions each gets its turn, and its share of the waiting."""
        share_s = block_s / len(self._partitions)
        for step in self._partitions:
            partition = (self._partition + step) % len(self._partitions)
            taken = await self._take(partition, at_most)
            if not taken.tickets and not taken.newer and share_s and await self._rings(partition, taken.newest, share_s):
                taken = await self._take(partition, at_most)
            if tickets := taken.tickets:
                self._partition = (partition + 1) % len(self._partitions)
                return tickets
        return []

    async def _take(self, partition: int, at_most: int) -> Taken:
        """New jobs of one partition, past those of newer versions; where there are only such, newer workers get a while."""
        taken = Taken("0-0", [], 0)
        for _ in range(PAST_NEWER):
            taken = await self._claims.take(partition, self.stage, self.name, at_most)
            if taken.tickets or not taken.newer:
                return taken
        log.info("queue.newer_jobs", stage=self.stage, partition=partition)
        await asyncio.sleep(NEWER_PAUSE_S * random.uniform(0.5, 1))  # noqa: S311 - jitter needs no secrecy
        return taken

    async def _rings(self, partition: int, newest: str, wait_s: float) -> bool:
        """Wait for an entry past the newest. Only a look: taking is one step with claiming, or there would be two writes."""
        queue = keys.queue(partition, self.stage)
        return bool(
            await self._read(wait_s, "XREAD", "COUNT", 1, "BLOCK", max(int(wait_s * 1000), 1), "STREAMS", queue, newest)
        )

    async def _read(self, wait_s: float, *command: Any) -> Any:
        answer = await self._connection.read_group(f"{self.stage} {self.name}", wait_s, *command)
        if answer is None:  # the group is gone with its stream: Redis was emptied
            self._grouped = False
            await self._make_groups()
        return answer

    async def _renew_forever(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 3)
            held = list(self._held.values())
            if not held:
                continue
            try:
                answers = await self._connection.run(
                    *(
                        self._connection.call(
                            "renew",
                            [keys.job(ticket.partition, ticket.id), keys.queue(ticket.partition, self.stage)],
                            ticket.entry_id, keys.GROUP, self.name, ticket.fence,
                        )
                        for ticket in held
                    )
                )  # fmt: skip
            except MeshError as error:
                log.warning("lease.not_renewed", stage=self.stage, jobs=len(held), error=error.detail)
                continue
            for ticket, kept in zip(held, answers, strict=True):
                if not kept:  # another worker has it; our result will be dropped by the fence
                    self.done(ticket)

    async def _leave(self, partition: int) -> None:
        queue = keys.queue(partition, self.stage)
        pending = await self._connection.run_one("XPENDING", queue, keys.GROUP, "-", "+", 1, self.name)
        if not pending:
            await self._connection.run_one("XGROUP", "DELCONSUMER", queue, keys.GROUP, self.name)


def _entries(answer: Any) -> list[tuple[str, str]]:
    """Entry ID and job ID of raw stream entries; deleted ones come without fields and are left out."""
    return [(bytes(entry[0]).decode(), bytes(pairs(entry[1])[b"id"]).decode()) for entry in answer if entry and entry[1]]

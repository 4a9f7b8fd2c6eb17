"""A consumer of one stage's queue: a Redis stream per partition, read as a consumer group, with leases.

`take` gives tickets, each a claimed job. A ticket's lease is the idle time of its entry in the group's pending list; this
module renews it until the worker says `done`. An entry whose worker died stays pending, and the next `take` of any other
worker claims it (XAUTOCLAIM) once the lease is over. When Redis is away, `take` waits and returns nothing; entries it
could not claim stay pending and come back the same way. Of several partitions one whose Redis is away stops no other.
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
AWAY_S = 1.0
BELL_S = 2.0
"""How long one look at a partition that has nothing blocks."""

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
        self._bells: dict[int, asyncio.Task[None]] = {}
        self._away_until_s: dict[int, float] = {}
        self._retry_s = RETRY_LEAST_S
        self._renewer: asyncio.Task[None] | None = None
        self._untold: list[Ticket] = []
        self._grouped: set[int] = set()
        self._partition = 0

    async def __aenter__(self) -> "Consumer":
        self._renewer = asyncio.create_task(self._renew_forever())
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._bells.values(), *([self._renewer] if self._renewer else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Only an empty seat is taken away: DELCONSUMER would strand what is still pending on it.
        for partition in self._partitions if not self._held else ():
            with contextlib.suppress(MeshError, Exception):
                await self._leave(partition)

    async def take(self, at_most: int, block_s: float = 2.0) -> list[Ticket]:
        """Claim up to `at_most` jobs, waiting up to `block_s` for the first. May return an empty list."""
        try:
            tickets: list[Ticket] = []
            for partition, found in await self._abandoned(at_most):
                tickets += await self._claims.claim(partition, self.stage, found)
            tickets = tickets or await self._new(at_most, block_s)
        except StoreUnavailable as error:
            log.warning("queue.unavailable", stage=self.stage, error=error.detail, retry_s=round(self._retry_s, 1))
            await asyncio.sleep(random.uniform(0, self._retry_s))  # noqa: S311 - jitter needs no secrecy
            self._retry_s = min(self._retry_s * 2, RETRY_MOST_S)
            return []
        self._retry_s = RETRY_LEAST_S
        for ticket in tickets:
            self._held[ticket.id, ticket.fence] = ticket
        if self.stage == "preprocess":
            self._untold = tickets
        return tickets

    def done(self, ticket: Ticket) -> None:
        """Stop renewing a ticket's lease: the job was handed on, ended or given back."""
        self._held.pop((ticket.id, ticket.fence), None)

    def _now_told(self) -> list[Ticket]:
        """Jobs that were taken before and are still worked on. They are announced with the next take, which comes at once while
        there is room, for an event of its own would cost a round trip. One that nobody hears is no harm."""
        now, self._untold = self._untold, []
        return [ticket for ticket in now if (ticket.id, ticket.fence) in self._held]

    async def _abandoned(self, at_most: int) -> list[tuple[int, list[tuple[str, str]]]]:
        """Entries whose lease is over, looked for a few times in a lease's length."""
        if time.monotonic() < self._reclaim_at_s:
            return []
        found: list[tuple[int, list[tuple[str, str]]]] = []
        for partition in self._partitions:
            if self._is_away(partition):
                continue
            try:
                answer = await self._connection.run_one(
                    "XAUTOCLAIM", keys.queue(partition, self.stage), keys.GROUP, self.name, int(self._lease_s * 1000), "0-0",
                    "COUNT", at_most,
                )  # fmt: skip
            except UnknownGroup:
                self._grouped.discard(partition)
                continue
            except StoreUnavailable as error:
                self._leave_alone(partition, error)
                continue
            entries = _entries(answer[1])
            # What this very worker holds is renewed, so it can only come up here if renewing failed for a lease's length.
            if entries:
                log.info("queue.reclaimed", stage=self.stage, entries=len(entries))
                found.append((partition, entries))
        if not found:  # as long as there are some, look again at once
            self._reclaim_at_s = time.monotonic() + self._lease_s / 4 * random.uniform(0.8, 1.2)  # noqa: S311
        return found

    async def _new(self, at_most: int, block_s: float) -> list[Ticket]:
        """New jobs."""
        if len(self._partitions) > 1:
            return await self._new_of_many(at_most, block_s)
        taken = await self._take(0, at_most)
        if not taken.tickets and not taken.newer and block_s and await self._rings(0, taken.newest, block_s):
            taken = await self._take(0, at_most)
        return taken.tickets

    async def _new_of_many(self, at_most: int, block_s: float) -> list[Ticket]:
        """New jobs of all partitions. One that had nothing gets a bell, and is not asked again until that rings."""
        tickets = await self._taken(at_most)
        if not tickets and block_s and self._bells:
            await asyncio.wait(self._bells.values(), timeout=block_s, return_when=asyncio.FIRST_COMPLETED)
            tickets = await self._taken(at_most)
        return tickets

    async def _taken(self, at_most: int) -> list[Ticket]:
        """What waits now, beginning with another partition each time.

        Raises:
            StoreUnavailable: no partition can be asked.
        """
        tickets: list[Ticket] = []
        answered = False
        for step in self._partitions:
            partition = (self._partition + step) % len(self._partitions)
            bell = self._bells.get(partition)
            if len(tickets) >= at_most or (bell and not bell.done()) or self._is_away(partition):
                continue
            self._bells.pop(partition, None)
            try:
                taken = await self._take(partition, at_most - len(tickets))
            except StoreUnavailable as error:
                self._leave_alone(partition, error)
                continue
            answered = True
            tickets += taken.tickets
            if not taken.tickets and not taken.newer:
                self._bells[partition] = asyncio.create_task(self._bell(partition, taken.newest))
        self._partition = (self._partition + 1) % len(self._partitions)
        if not answered and not self._bells:
            raise StoreUnavailable("no partition can be asked", retry_after_s=1)
        return tickets

    async def _bell(self, partition: int, newest: str) -> None:
        """Ends when a partition has something new, or may have: whoever looks then is told what is wrong."""
        with contextlib.suppress(Exception):
            while not await self._rings(partition, newest, BELL_S):
                pass

    async def _take(self, partition: int, at_most: int) -> Taken:
        """New jobs of one partition, past those of newer versions; where there are only such, newer workers get a while."""
        taken = Taken("0-0", [], 0)
        for _ in range(PAST_NEWER):
            try:
                if partition not in self._grouped:
                    await self._connection.make_group(keys.queue(partition, self.stage), keys.GROUP)
                    self._grouped.add(partition)
                taken = await self._claims.take(partition, self.stage, self.name, at_most, self._now_told())
            except UnknownGroup:  # it is gone with its stream: Redis was emptied
                self._grouped.discard(partition)
                return taken
            if taken.tickets or not taken.newer:
                return taken
        log.info("queue.newer_jobs", stage=self.stage, partition=partition)
        await asyncio.sleep(NEWER_PAUSE_S * random.uniform(0.5, 1))  # noqa: S311 - jitter needs no secrecy
        return taken

    async def _rings(self, partition: int, newest: str, wait_s: float) -> bool:
        """Wait for an entry past the newest. Only a look: taking is one step with claiming, or there would be two writes."""
        queue = keys.queue(partition, self.stage)
        return bool(
            await self._connection.read_group(
                f"{self.stage} {self.name} {partition}", wait_s,
                "XREAD", "COUNT", 1, "BLOCK", max(int(wait_s * 1000), 1), "STREAMS", queue, newest,
            )
        )  # fmt: skip

    def _is_away(self, partition: int) -> bool:
        return self._away_until_s.get(partition, 0.0) > time.monotonic()

    def _leave_alone(self, partition: int, error: StoreUnavailable) -> None:
        """Go on with the others for a moment; with a single partition there are none.

        Raises:
            StoreUnavailable: `error`.
        """
        if len(self._partitions) == 1:
            raise error
        log.warning("queue.partition_unavailable", stage=self.stage, partition=partition, error=error.detail)
        self._away_until_s[partition] = time.monotonic() + AWAY_S * random.uniform(0.5, 1.0)  # noqa: S311

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

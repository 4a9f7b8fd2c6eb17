"""How deep the queues are: what `/health` shows and autoscaling follows."""

import contextlib

import msgspec
from redis.exceptions import ResponseError

from shared.store import keys
from shared.store.clock import Clock
from shared.store.connection import Connection


class Depth(msgspec.Struct):
    """One stage's queue. Entries leave the stream when they are done, so its length is waiting plus in progress."""

    waiting: int = 0
    in_progress: int = 0
    oldest_age_ms: float = 0.0
    overdue_leases: int = 0


OVERDUE_LEASES = 2
"""A job left alone for this many leases has no worker that looks for abandoned ones."""

OVERDUE_AT_MOST = 1000


async def depths(connection: Connection, clock: Clock, stages: list[str], partitions: int, lease_s: float) -> dict[str, Depth]:
    """The depth of each stage over all partitions."""
    overdue_ms = int(lease_s * 1000 * OVERDUE_LEASES)
    found = {stage: Depth() for stage in stages}
    for stage, depth in found.items():
        for partition in range(partitions):
            queue = keys.queue(partition, stage)
            length, first = await connection.run(("XLEN", queue), ("XRANGE", queue, "-", "+", "COUNT", 1))
            pending = 0
            with contextlib.suppress(ResponseError):  # no worker of this stage has ever been here
                summary, idle = await connection.run(
                    ("XPENDING", queue, keys.GROUP),
                    ("XPENDING", queue, keys.GROUP, "IDLE", overdue_ms, "-", "+", OVERDUE_AT_MOST),
                )
                pending = int(summary[0])
                depth.overdue_leases += len(idle)
            depth.in_progress += pending
            depth.waiting += max(int(length) - pending, 0)
            if first:
                born_ms = int(bytes(first[0][0]).split(b"-")[0])
                depth.oldest_age_ms = max(depth.oldest_age_ms, round(clock.now_ms() - born_ms, 1))
    return found

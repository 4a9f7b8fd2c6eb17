"""The links to one Redis that its commands share: one for small ones, a few for those that bring pictures or tensors.

Small commands need not wait behind a picture. And Redis reads each connection once in a turn of its loop, which it ends with
one write and one fsync of its append-only file: pictures that come by several connections share that, in order they would not.
"""

from collections.abc import Sequence
from typing import Any

from redis.asyncio.connection import ConnectionPool

from shared.store.link import Link
from shared.store.packing import pack

LARGE_BYTES = 64 * 1024
"""What is larger goes by a link for large commands."""

LARGE_LINKS = 4


class Lanes:
    """`pool` tells where to; each link connects when it is first needed."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._small = Link(pool)
        self._large = [Link(pool) for _ in range(LARGE_LINKS)]

    async def send(self, commands: Sequence[Sequence[Any]], timeout_s: float) -> list[Any]:
        """Send commands in one round trip; see `Link.send`."""
        buffers, count = pack(commands)
        link = self._small if count <= LARGE_BYTES else min(self._large, key=_waiting)
        return await link.send_packed(buffers, len(commands), timeout_s)

    def close(self) -> None:
        """Cut all links; they may be used again."""
        for link in (self._small, *self._large):
            link.close()


def _waiting(link: Link) -> int:
    return link.waiting

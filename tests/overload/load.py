"""Pictures sent whatever the mesh says: at a rate of their own, or as fast as jobs end."""

import asyncio
import itertools
import time

import msgspec

from tests.chaos.books import Books
from visionmesh.bench.connection import Address, Connection, ConnectionFailed
from visionmesh.bench.pictures import generate

TIMEOUT_S = 30.0
CONNECTIONS = 64


class Sent(msgspec.Struct):
    """When a picture was due to be sent, how long its answer took from then, and what it was (0: none)."""

    due_s: float
    took_ms: float
    status: int
    retry_after_s: int = 0


class _Accepted(msgspec.Struct):
    id: str


_accepted = msgspec.json.Decoder(_Accepted).decode


def request(picture: bytes) -> bytes:
    """A whole request that submits this picture."""
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: mesh\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
    return head.encode() + picture


class Load:
    """Sends to one mesh and keeps the books of what was accepted."""

    def __init__(self, address: Address, books: Books) -> None:
        self._address = address
        self._books = books
        self._requests = itertools.cycle([request(picture) for picture in generate(810, 1080)])
        self.sent: list[Sent] = []

    async def closed(self, seconds: float, most_open: int) -> None:
        """Keep `most_open` jobs open."""
        connection, end_s = Connection(self._address), time.monotonic() + seconds
        try:
            while time.monotonic() < end_s:
                if len(self._books.accepted) - len(self._books.ended_at) < most_open:
                    await self._send(connection, time.monotonic())
                else:
                    await asyncio.sleep(0.002)
        finally:
            connection.close()

    async def open(self, seconds: float, rate: float) -> None:
        """Send `rate` pictures a second, evenly. Latency counts from when each was due, whatever it then had to wait for."""
        started_s, numbers = time.monotonic(), itertools.count()

        async def client() -> None:
            connection = Connection(self._address)
            try:
                while (due_s := started_s + next(numbers) / rate) < started_s + seconds:
                    await asyncio.sleep(max(due_s - time.monotonic(), 0))
                    await self._send(connection, due_s)
            finally:
                connection.close()

        await asyncio.gather(*(client() for _ in range(CONNECTIONS)))

    async def _send(self, connection: Connection, due_s: float) -> None:
        try:
            answer = await connection.exchange(next(self._requests), TIMEOUT_S)
        except ConnectionFailed:
            self.sent.append(Sent(due_s, (time.monotonic() - due_s) * 1000, 0))
            return
        now_s = time.monotonic()
        sent = Sent(due_s, (now_s - due_s) * 1000, answer.status)
        if answer.status == 202:
            self._books.accepted[_accepted(answer.body).id] = now_s
        else:
            head = answer.head.lower()
            at = head.find(b"retry-after: ")
            sent.retry_after_s = int(head[at + 13 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        self.sent.append(sent)

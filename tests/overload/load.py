"""Pictures sent whatever the mesh says: at a rate of their own, or as fast as jobs end."""

import asyncio
import itertools
import time
from typing import Literal, NamedTuple, get_args

import msgspec

from tests.chaos.books import Books
from visionmesh.bench.connection import Address, Answer, Connection, ConnectionFailed
from visionmesh.bench.pictures import generate

TIMEOUT_S = 30.0
CONNECTIONS = 64

Clients = Literal["send", "ask"]
"""`send` sends head and body at once; `ask` sends `Expect: 100-continue` and the body when it is asked for."""

CLIENTS: tuple[Clients, ...] = get_args(Clients)

_CONTINUE = b"HTTP/1.1 100 "


class Sent(msgspec.Struct):
    """When a picture was due to be sent, how long its answer took from then, and what it was (0: none)."""

    due_s: float
    took_ms: float
    status: int
    retry_after_s: int = 0


class _Accepted(msgspec.Struct):
    id: str


_accepted = msgspec.json.Decoder(_Accepted).decode


class Request(NamedTuple):
    """What is sent at once, and what only when it is asked for."""

    first: bytes
    then: bytes


def request(picture: bytes, clients: Clients) -> Request:
    """A request that submits this picture."""
    expect = "Expect: 100-continue\r\n" if clients == "ask" else ""
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: mesh\r\n{expect}Content-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
    return Request(head.encode(), picture) if clients == "ask" else Request(head.encode() + picture, b"")


class Asking(Connection):
    """A connection that sends a body once the server asks for it (RFC 9110, 10.1.1)."""

    _then = b""

    async def submit(self, request: Request, timeout_s: float) -> Answer:
        """Send what comes first, the rest if it is wanted, and return the final answer.

        Raises:
            ConnectionFailed: see `exchange`.
        """
        self._then = request.then
        return await self.exchange(request.first, timeout_s)

    def data_received(self, data: bytes) -> None:
        """A piece of an answer; the interim one may come before it, or with it."""
        if self._then and data.startswith(_CONTINUE) and self._transport is not None:
            _, _, data = data.partition(b"\r\n\r\n")
            self._transport.write(self._then)
            self._then = b""
        if data:
            super().data_received(data)


class Load:
    """Sends to one mesh and keeps the books of what was accepted."""

    def __init__(self, address: Address, books: Books, clients: Clients) -> None:
        self._address = address
        self._books = books
        self._requests = itertools.cycle([request(picture, clients) for picture in generate(810, 1080)])
        self.sent: list[Sent] = []

    async def closed(self, seconds: float, most_open: int) -> None:
        """Keep `most_open` jobs open."""
        connection, end_s = Asking(self._address), time.monotonic() + seconds
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
            connection = Asking(self._address)
            try:
                while (due_s := started_s + next(numbers) / rate) < started_s + seconds:
                    await asyncio.sleep(max(due_s - time.monotonic(), 0))
                    await self._send(connection, due_s)
            finally:
                connection.close()

        await asyncio.gather(*(client() for _ in range(CONNECTIONS)))

    async def _send(self, connection: Asking, due_s: float) -> None:
        try:
            answer = await connection.submit(next(self._requests), TIMEOUT_S)
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

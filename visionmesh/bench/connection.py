"""A keep-alive HTTP/1.1 connection as light as it gets: one request at a time, written as prepared bytes.

A full client costs about a millisecond of CPU for each request, which on a small machine is taken from what is measured.
Only what answers to a benchmark need is read: status, Content-Length or chunks, and the body (RFC 9112).
"""

import asyncio
from typing import NamedTuple, cast
from urllib.parse import urlsplit

_HEAD_END = b"\r\n\r\n"


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int


class Answer(NamedTuple):
    """Status, head (status line and header fields as they came) and body of an answer."""

    status: int
    head: bytes
    body: bytes


class ConnectionFailed(Exception):
    """There is no answer; the message is one of `connect`, `disconnected`, `timeout`, `protocol`."""


def address_of(url: str) -> Address:
    """Host and port of an `http://` URL.

    Raises:
        ValueError: it is none. TLS ends at a proxy, and would be what is measured.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"{url!r} is not an http:// URL")
    return Address(parts.hostname, parts.port or 80)


class Connection(asyncio.Protocol):
    """Connects with its first request, and again after it was closed."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Answer] | None = None
        self._received = bytearray()

    async def exchange(self, request: bytes, timeout_s: float) -> Answer:
        """Send a whole request and return its answer.

        Raises:
            ConnectionFailed: there is no answer within `timeout_s`; the next request connects anew.
        """
        deadline = self._loop.call_later(timeout_s, self._fail, "timeout")
        try:
            if self._transport is None or self._transport.is_closing():
                await self._connect(timeout_s)
            assert self._transport is not None  # noqa: S101 - connected just now
            self._waiter = self._loop.create_future()
            self._transport.write(request)
            return await self._waiter
        finally:
            deadline.cancel()
            self._waiter = None

    def close(self) -> None:
        """Close it; it may be used again."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    async def _connect(self, timeout_s: float) -> None:
        self._received.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._loop.create_connection(lambda: self, *self._address)
        except TimeoutError:
            raise ConnectionFailed("timeout") from None
        except OSError:
            raise ConnectionFailed("connect") from None

    # --- called by the event loop -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self._transport = cast("asyncio.Transport", transport)  # create_connection makes no other; uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """A piece of an answer."""
        self._received += data
        try:
            answer = _parse(self._received)
        except ValueError:
            self._fail("protocol")
            return
        if answer is None:
            return
        self._received.clear()
        if b"\r\nconnection: close" in answer.head.lower():
            self.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """The server went away."""
        self._fail("disconnected")

    def _fail(self, why: str) -> None:
        self.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ConnectionFailed(why))


def _parse(received: bytearray) -> Answer | None:
    """The answer, once all of it is there.

    Raises:
        ValueError: it is no HTTP/1.1 answer.
    """
    end = received.find(_HEAD_END)
    if end < 0:
        return None
    head = bytes(received[:end])
    if not head.startswith(b"HTTP/1."):
        raise ValueError("no HTTP answer")
    start, fields = end + len(_HEAD_END), head.lower()
    status = int(head[9:12])
    length = header(fields, b"content-length")
    if length is not None:
        if len(received) - start < int(length):
            return None
        return Answer(status, head, bytes(received[start : start + int(length)]))
    if header(fields, b"transfer-encoding") == b"chunked":
        body = _chunks(received, start)
        return None if body is None else Answer(status, head, body)
    if status in (204, 304):
        return Answer(status, head, b"")
    raise ValueError("an answer without a length")


def header(head: bytes, name: bytes) -> bytes | None:
    """The value of a field (`name` in the case in which it stands in `head`), if it is there."""
    at = head.find(b"\r\n" + name + b":")
    if at < 0:
        return None
    end = head.find(b"\r\n", at + 2)
    return head[at + len(name) + 3 : end if end >= 0 else None].strip()


def _chunks(received: bytearray, at: int) -> bytes | None:
    body = bytearray()
    while True:
        end = received.find(b"\r\n", at)
        if end < 0:
            return None
        size = int(received[at:end].partition(b";")[0], 16)
        at = end + 2
        if len(received) < at + size + 2:
            return None
        if not size:
            return bytes(body)
        body += received[at : at + size]
        at += size + 2

"""A request's body as it comes: bounded in bytes and in time, never collected here.

A refusal in the middle of a body is followed by a bounded drain: a client that has not finished sending would otherwise see
a reset connection instead of the answer.
"""

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.types import Message, Receive

from shared.errors import BadRequest, BodyTimeout, MeshError, TooLarge

DRAIN_S = 2.0


class Disconnected(Exception):
    """The client is gone; nobody will read an answer."""


class Body:
    """The body of one request, to be read once. As a context manager it drains what is left when the request is refused."""

    def __init__(self, request: Request, *, max_bytes: int, timeout_s: float) -> None:
        self._receive: Receive = request.receive
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._expects_continue = request.headers.get("expect", "").lower() == "100-continue"
        self._ended = False
        self.read_bytes = 0
        length = request.headers.get("content-length")
        chunked = "transfer-encoding" in request.headers
        if length is not None and chunked:
            # Two answers to where the body ends are how requests are smuggled past proxies.
            raise BadRequest("a request with both Content-Length and Transfer-Encoding is refused")
        self._announced = int(length) if length is not None and length.isdecimal() else None

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body's pieces as they arrive.

        Raises:
            TooLarge: it is longer than allowed; known from its Content-Length before anything is read, else when it is.
            BodyTimeout: it has not come as a whole in time.
            Disconnected: the client went away.
        """
        if self._announced is not None and self._announced > self._max_bytes:
            raise TooLarge(f"the body has {self._announced} bytes; at most {self._max_bytes} are taken")
        deadline_s = asyncio.get_running_loop().time() + self._timeout_s
        while not self._ended:
            try:
                async with asyncio.timeout_at(deadline_s):
                    message = await self._receive()
            except TimeoutError:
                self._ended = True  # no drain for a client that is too slow anyway
                raise BodyTimeout(f"the body was not complete within {self._timeout_s:g} s") from None
            chunk = self._piece(message)
            self.read_bytes += len(chunk)
            if self.read_bytes == self._announced:
                self._ended = True  # the message that only says so need not be waited for
            if self.read_bytes > self._max_bytes:
                raise TooLarge(f"the body has more than the {self._max_bytes} bytes that are taken")
            if chunk:
                yield chunk

    async def __aenter__(self) -> "Body":
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, MeshError):
            await self.drain()

    async def drain(self) -> None:
        """Read on for a while and throw away, so that a refusal reaches a client that is still sending."""
        if self._expects_continue and not self.read_bytes:
            return  # it waits for our answer before it sends anything
        left = self._max_bytes
        try:
            async with asyncio.timeout(DRAIN_S):
                while not self._ended and left > 0:
                    left -= len(self._piece(await self._receive()))
        except (TimeoutError, Disconnected):
            return

    def _piece(self, message: Message) -> bytes:
        if message["type"] == "http.disconnect":
            self._ended = True
            raise Disconnected
        self._ended = not message.get("more_body", False)
        return message.get("body", b"")

"""A TCP proxy between the mesh and a server, that can delay, throttle and cut what passes."""

import asyncio
import contextlib
from types import TracebackType
from typing import Self

BLOCK_BYTES = 64 * 1024


class Proxy:
    """Listens on a free port of its own and passes everything on to a port. Use as an async context manager."""

    def __init__(self, port: int) -> None:
        self.delay_s = 0.0
        self.bytes_per_s = 0.0
        """0: not throttled."""
        self._to_port = port
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._refusing = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server
        self._server.close()
        self.cut()
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server
        return self._server.sockets[0].getsockname()[1]

    def leads_to(self, port: int) -> None:
        """Pass new connections on to another port; those there are stay where they are."""
        self._to_port = port

    def cut(self) -> None:
        """Reset every connection, with whatever is on its way."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def refuse(self, seconds: float) -> None:
        """Cut everything and let nobody in for a while."""
        self._refusing = True
        self.cut()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._refusing = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self._refusing:
                return
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        except OSError:
            return
        else:
            self._writers.add(there_writer)
            pipes = [
                asyncio.create_task(self._pipe(reader, there_writer)),
                asyncio.create_task(self._pipe(there_reader, writer)),
            ]
            self._pipes.update(pipes)
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
            for pipe in pipes:
                pipe.cancel()
            await asyncio.gather(*pipes, return_exceptions=True)
            self._pipes.difference_update(pipes)
            there_writer.transport.abort()
            self._writers.discard(there_writer)
        finally:
            writer.transport.abort()
            self._writers.discard(writer)

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while block := await reader.read(BLOCK_BYTES):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if self.bytes_per_s:
                    await asyncio.sleep(len(block) / self.bytes_per_s)
                writer.write(block)
                await writer.drain()

"""A process' own port, never the public one: `/metrics` for Prometheus, `/livez` and `/readyz` for who runs the process.

It is answered by the same event loop that does the work, so `/livez` tells that the loop turns. A scrape renders the
process' registry, some milliseconds every few seconds.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from shared.settings import Settings

REQUEST_TIMEOUT_S = 5.0
HEAD_MOST_BYTES = 16 * 1024

Answer = tuple[int, str, bytes]
"""Status, content type and body."""

Page = Callable[[], Awaitable[Answer]]

log = structlog.get_logger()


async def process_metrics() -> Answer:
    """Everything in this process' registry, in Prometheus' text format."""
    return 200, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(REGISTRY)


@asynccontextmanager
async def exposed(
    settings: Settings, ready: Callable[[], bool], pages: dict[str, Page] | None = None
) -> AsyncGenerator[int | None]:
    """Listen on `MESH_METRICS_PORT` while the block lasts; yields the port, or `None` where metrics are off or it is taken.

    A taken port is logged, not raised: a mesh that cannot be watched still works.
    """
    if not settings.metrics_port:
        yield None
        return

    async def live() -> Answer:
        return 200, "text/plain", b"live\n"

    async def readiness() -> Answer:
        return (200, "text/plain", b"ready\n") if ready() else (503, "text/plain", b"not ready\n")

    table: dict[str, Page] = {"/metrics": process_metrics, "/livez": live, "/readyz": readiness, **(pages or {})}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await _answer(reader, writer, table)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("metrics.request_dropped", error=str(error))
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    try:
        server = await asyncio.start_server(answer, settings.metrics_host, settings.metrics_port, limit=HEAD_MOST_BYTES)
    except OSError as error:
        log.error("metrics.port_taken", host=settings.metrics_host, port=settings.metrics_port, error=error.strerror)  # noqa: TRY400
        yield None
        return
    try:
        yield settings.metrics_port
    finally:
        server.close()
        await server.wait_closed()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, table: dict[str, Page]) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    method, target, *_ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    page = table.get(target.partition("?")[0])
    if page is None or method != "GET":
        status, content_type, body = 404, "text/plain", b"not found\n"
    else:
        status, content_type, body = await page()
    head_lines = [f"HTTP/1.1 {status} ", f"Content-Type: {content_type}", f"Content-Length: {len(body)}", "Connection: close"]
    writer.write("\r\n".join(head_lines).encode() + b"\r\n\r\n" + body)
    await writer.drain()

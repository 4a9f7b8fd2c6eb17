"""The least a server can do with a picture: read it and answer 200. What the load generator is measured against.

Started as a process of its own by `running`: Granian, one worker.
"""

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deploy.local import ports
from deploy.local.errors import StartError
from deploy.local.process import Process
from visionmesh.bench.connection import Address

START_WITHIN_S = 15.0

_START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
_BODY = {"type": "http.response.body", "body": b"ok"}


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The ASGI application."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send(_START)
    await send(_BODY)


@asynccontextmanager
async def running(
    target: str = "visionmesh.bench.bare:app", environ: dict[str, str] | None = None, options: Sequence[str] = ()
) -> AsyncGenerator[tuple[Address, int]]:
    """A bare Granian with this application, for as long as the block lasts: its address and process ID.

    Raises:
        StartError: Granian is not installed, or does not start.
    """
    if find_spec("granian") is None:
        raise StartError("the package granian is missing: pip install 'visionmesh[gateway]'")
    port = ports.free()
    command = [sys.executable, "-m", "granian", "--interface", "asgi", "--http", "1", "--loop", "uvloop", "--no-ws"]
    command += ["--workers", "1", "--log-level", "warning", "--host", "127.0.0.1", "--port", str(port), *options, target]
    with tempfile.TemporaryDirectory(prefix="visionmesh-bare-") as folder:
        process = Process("bare", command, dict(os.environ) | (environ or {}), Path(folder) / "bare.log")
        await process.start()
        try:
            await _until_open(process, port)
            yield Address("127.0.0.1", port), process.pid or 0
        finally:
            await process.stop(5.0)


async def _until_open(process: Process, port: int) -> None:
    try:
        async with asyncio.timeout(START_WITHIN_S):
            while True:
                if process.returncode is not None:
                    raise StartError(f"the bare server ends at once: {process.last_line()}")
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise StartError(f"the bare server does not listen after {START_WITHIN_S:g} s: {process.last_line()}") from None

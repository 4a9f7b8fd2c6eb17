"""A gateway on its own, with the real Valkey and no workers: what it accepts stays queued."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from deploy.local import ports
from deploy.local.process import Process, python_module
from tests.conftest import Background, _until


@contextlib.contextmanager
def gateway_process(background: Background, folder: Path, redis_url: str, environ: Mapping[str, str]) -> Iterator[str]:
    """`python -m gateway` on a free port; gives its URL."""
    port = ports.free()
    own = {"MESH_REDIS_URL": redis_url, "MESH_PORT": str(port), "MESH_SHUTDOWN_S": "3"}
    process = Process(f"gateway-{port}", python_module("gateway"), {**os.environ, **own, **environ}, folder / f"{port}.log")
    url = f"http://127.0.0.1:{port}"

    async def ready() -> bool:
        assert process.returncode is None, process.last_line()
        async with httpx.AsyncClient() as http:
            try:
                return (await http.get(f"{url}/readyz")).json()["checks"]["redis"]
            except httpx.TransportError:
                return False

    background.run(process.start())
    try:
        background.run(_until(ready))
        yield url
    finally:
        background.run(process.stop(6))

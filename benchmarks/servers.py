"""What is measured, started beside each other on this machine: a Triton that all share, the peer, and meshes.

All are there for a whole run, so that the arms can alternate; whoever is not asked idles.
"""

import asyncio
import contextlib
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from deploy.export import repository
from deploy.local import ports
from deploy.local.process import Process
from deploy.local.supervisor import LocalMesh, Options, running
from deploy.local.triton import Triton
from deploy.local.valkey import Valkey
from shared import cores, models
from visionmesh.bench.connection import Address

ROOT = Path(__file__).parents[1]
PEER = ROOT / "benchmarks" / "peer"
PEER_VENV = ROOT / ".venv-peer"
START_S = 60.0

REGISTRY = """
[models.echo]
triton_model = "echo"
input_width = 640
input_height = 640
labels = ["@coco"]
max_batch = 16
"""


class BenchmarkError(Exception):
    """Something cannot be measured. The message is one line."""


async def until(ready: Callable[[], Awaitable[bool]], what: str, process: Process) -> None:
    """Poll a server that was started until it answers.

    Raises:
        BenchmarkError: it ends, or does not answer in time.
    """
    try:
        async with asyncio.timeout(START_S):
            while not await ready():
                if process.returncode is not None:
                    raise BenchmarkError(f"{what} ends at once: {process.last_line()}")
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise BenchmarkError(f"{what} is not ready after {START_S:g} s: {process.last_line()}") from None


@asynccontextmanager
async def folder() -> AsyncGenerator[Path]:
    """A temporary folder."""
    path = Path(tempfile.mkdtemp(prefix="visionmesh-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@asynccontextmanager
async def triton(home: Path) -> AsyncGenerator[Triton]:
    """A Triton with the default detector and echo."""
    served = home / "models"
    names = await asyncio.to_thread(repository.write_default, served)
    shutil.copytree(ROOT / "benchmarks" / "echo", served / "echo")
    async with triton_of(home, served, [*names, "echo"]) as server:
        yield server


@asynccontextmanager
async def triton_of(home: Path, served: Path, names: list[str]) -> AsyncGenerator[Triton]:
    """A Triton with these models of a repository."""
    http_port, grpc_port, metrics_port = (ports.free() for _ in range(3))
    server = Triton(home, served, names, http_port=http_port, grpc_port=grpc_port, metrics_port=metrics_port)

    async def ready() -> bool:
        return await asyncio.to_thread(server.ready)

    await server.start()
    try:
        await until(ready, "Triton", server)
        yield server
    finally:
        await server.stop(5.0)


@asynccontextmanager
async def valkey(home: Path, more_options: Mapping[str, str] | None = None) -> AsyncGenerator[Valkey]:
    """A Valkey with the embedded default's configuration, but for these options."""
    server = Valkey(home, ports.free(), more_options)
    await server.start()
    try:
        await until(server.ready, "Valkey", server)
        yield server
    finally:
        await server.stop(5.0)


def registry(home: Path) -> str:
    """Write the default registry with echo in it; returns its path."""
    path = home / "models.toml"
    path.write_text(models.DEFAULT_FILE.read_text("utf-8") + REGISTRY, "utf-8")
    return str(path)


@asynccontextmanager
async def mesh(
    home: Path, triton_url: str, environ: dict[str, str] | None = None, workers: int = 1
) -> AsyncGenerator[LocalMesh]:
    """A mesh with a Valkey of its own on a Triton that is shared."""
    environ = {"MESH_MODELS": registry(home), "MESH_LOG_LEVEL": "warning"} | (environ or {})
    options = Options(
        port=ports.free(), triton_url=triton_url, environ=environ, preprocess_workers=workers, inference_workers=workers
    )
    async with running(options) as local:
        yield local


def prepare_peer() -> Path:
    """The Python of the peer's virtual environment, made on first use.

    Raises:
        BenchmarkError: its packages cannot be installed.
    """
    python = PEER_VENV / "bin" / "python"
    stamp = PEER_VENV / ".installed"
    if not stamp.exists():
        uv = Path(sys.executable).parent / "uv"
        wanted = PEER / "requirements.txt"
        try:
            subprocess.run([uv, "venv", "-q", "--allow-existing", "--python", sys.executable, PEER_VENV], check=True)  # noqa: S603 - our own arguments
            subprocess.run([uv, "pip", "install", "-q", "--python", python, "-r", wanted], check=True)  # noqa: S603 - as above
        except (OSError, subprocess.CalledProcessError) as error:
            raise BenchmarkError(f"the peer's packages cannot be installed: {error}") from None
        stamp.touch()
    return python


@asynccontextmanager
async def peer(home: Path, triton_url: str) -> AsyncGenerator[tuple[Address, Process]]:
    """The FastAPI service with a uvicorn worker for each core."""
    python = await asyncio.to_thread(prepare_peer)
    port = ports.free()
    command = [str(python), "-m", "uvicorn", "--app-dir", str(PEER), "app:app", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", str(cores.available()), "--no-access-log", "--log-level", "warning"]
    process = Process("peer", command, peer_environ(triton_url), home / "peer.log")

    def answers() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/livez")
                return connection.getresponse().status == http.client.OK
            except (OSError, http.client.HTTPException):
                return False

    async def ready() -> bool:
        return await asyncio.to_thread(answers)

    await process.start()
    try:
        await until(ready, "the peer", process)
        yield Address("127.0.0.1", port), process
    finally:
        await process.stop(5.0)


def peer_environ(triton_url: str) -> dict[str, str]:
    """The environment of both neighbours."""
    path = f"{PEER_VENV / 'bin'}:{os.environ.get('PATH', os.defpath)}"
    return {"PATH": path, "PEER_TRITON_URL": triton_url, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(PEER)}

"""What all tests share: a real Valkey, a real Triton, and a whole mesh, each started once and stopped at the end.

redis_url   an emptied Valkey, for tests of one process against the store
cluster     an emptied Redis Cluster of three Valkeys
triton_url  a Triton with both graphs of the default detector
certificates  an authority and a certificate of its for this machine
mesh        the whole mesh as `visionmesh up` runs it, with its own Valkey and Triton
"""

import asyncio
import atexit
import base64
import contextlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import redis
import structlog

from deploy.export import repository
from deploy.local import ports
from deploy.local.supervisor import LocalMesh, Options, running
from deploy.local.triton import Triton
from deploy.local.valkey import Valkey
from tests.cluster import Nodes

WEBHOOK_SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
# Whoever runs the tests may have models of their own, which are none of these tests' business.
os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="visionmesh-tests-home-")
atexit.register(shutil.rmtree, os.environ["XDG_DATA_HOME"], ignore_errors=True)

PHOTOS = Path(__file__).parents[1] / "visionmesh" / "photos"


class Background:
    """An event loop in a thread of its own, for servers that outlive a test's loop.

    The thread lives as long as its servers: the kernel ends a child when the *thread* that started it is gone.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "Background":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(120)


@pytest.fixture(autouse=True)
def _own_logs() -> Iterator[None]:
    """A service's `main` that a test calls sets up logs to what pytest closes afterwards."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def background() -> Iterator[Background]:
    with Background() as background:
        yield background


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="visionmesh-tests-") as name:
        yield Path(name)


class Certificates(NamedTuple):
    """An authority that was made a moment ago, and a certificate of it for this machine."""

    authority: Path
    certificate: Path
    key: Path


@pytest.fixture(scope="session")
def certificates(folder: Path) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("needs the command openssl to make certificates")
    made = Certificates(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    ca_key, request, names = folder / "ca.key", folder / "server.csr", folder / "names"
    names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    elliptic = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for command in (
        ["req", "-x509", *elliptic, "-keyout", ca_key, "-out", made.authority, "-days", "2", "-subj", "/CN=tests"],
        ["req", *elliptic, "-keyout", made.key, "-out", request, "-subj", "/CN=localhost"],
        ["x509", "-req", "-in", request, "-CA", made.authority, "-CAkey", ca_key, "-CAcreateserial",
         "-out", made.certificate, "-days", "2", "-extfile", names],
    ):  # fmt: skip
        subprocess.run(["openssl", *command], check=True, capture_output=True, timeout=20)
    return made


async def _until(ready) -> None:
    async with asyncio.timeout(60):
        while not await ready():  # noqa: ASYNC110 - what a server of others does cannot be awaited
            await asyncio.sleep(0.02)


@pytest.fixture(scope="session")
def valkey(background: Background, folder: Path) -> Iterator[Valkey]:
    server = Valkey(folder, ports.free())
    background.run(server.start())
    background.run(_until(server.ready))
    yield server
    background.run(server.stop(5))


@pytest.fixture
def redis_url(valkey: Valkey) -> str:
    with contextlib.closing(redis.Redis.from_url(valkey.url)) as client:
        client.flushall()
    return valkey.url


@pytest.fixture(scope="session")
def three_nodes(background: Background, folder: Path) -> Iterator[Nodes]:
    nodes = Nodes(folder / "cluster", background.run)
    nodes.start()
    yield nodes
    nodes.stop()


@pytest.fixture
def cluster(three_nodes: Nodes) -> Nodes:
    three_nodes.flush()
    return three_nodes


@pytest.fixture(scope="session")
def model_repository(folder: Path) -> Path:
    repository.write_default(folder / "models")
    return folder / "models"


@contextlib.contextmanager
def running_triton(
    background: Background, folder: Path, model_repository: Path, models: Sequence[str], more_options: Sequence[str] = ()
) -> Iterator[Triton]:
    """A Triton that is ready, for as long as the block lasts."""
    http_port, grpc_port, metrics_port = (ports.free() for _ in range(3))
    server = Triton(
        folder, model_repository, models,
        http_port=http_port, grpc_port=grpc_port, metrics_port=metrics_port, more_options=more_options,
    )  # fmt: skip

    async def ready() -> bool:
        assert server.returncode is None, server.last_line()
        return await asyncio.to_thread(server.ready)

    background.run(server.start())
    try:
        background.run(_until(ready))
        yield server
    finally:
        background.run(server.stop(0))  # in order it would take three seconds, and nobody asks it any more


@pytest.fixture(scope="session")
def triton(background: Background, folder: Path, model_repository: Path) -> Iterator[Triton]:
    with running_triton(background, folder, model_repository, ["small", "small_end2end"]) as server:
        yield server


@pytest.fixture(scope="session")
def triton_url(triton: Triton) -> str:
    return triton.url


@contextlib.contextmanager
def running_mesh(background: Background, options: Options) -> Iterator[LocalMesh]:
    """A mesh of one's own, for tests that hurt it."""
    manager = running(options)
    mesh = background.run(manager.__aenter__())
    try:
        yield mesh
    finally:
        background.run(manager.__aexit__(None, None, None))


@pytest.fixture(scope="session")
def mesh(background: Background) -> Iterator[LocalMesh]:
    environ = {"MESH_HEARTBEAT_S": "0.5", "MESH_BODY_TIMEOUT_S": "3", "MESH_MAX_UPLOAD_BYTES": str(4 * 1024 * 1024)}
    environ |= {"MESH_WEBHOOK_SECRET": WEBHOOK_SECRET, "MESH_WEBHOOK_PRIVATE_HOSTS": "127.0.0.1"}
    environ |= {"MESH_WEBHOOK_RETRY_S": "0.2", "MESH_WEBHOOK_TRIES": "3"}
    with running_mesh(background, Options(port=ports.free(), environ=environ)) as mesh:
        yield mesh


@pytest.fixture
def http(mesh: LocalMesh) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=mesh.url, timeout=30) as client:
        yield client

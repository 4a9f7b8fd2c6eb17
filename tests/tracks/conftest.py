"""A mesh with all four tracks: its own registry and Triton, the session's Valkey."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from deploy.export import tracks
from deploy.export.tracks import Written
from deploy.local import ports
from deploy.local.supervisor import LocalMesh, Options
from deploy.local.triton import Triton
from deploy.local.valkey import Valkey
from tests.conftest import Background, _until, running_mesh


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return tracks.write(tmp_path_factory.mktemp("tracks"))


@pytest.fixture(scope="session")
def tracks_triton(background: Background, tmp_path_factory: pytest.TempPathFactory, written: Written) -> Iterator[Triton]:
    http_port, grpc_port, metrics_port = (ports.free() for _ in range(3))
    server = Triton(
        tmp_path_factory.mktemp("triton"),
        written.repository,
        written.triton_models,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
    )

    async def ready() -> bool:
        assert server.returncode is None, server.last_line()
        return await asyncio.to_thread(server.ready)

    background.run(server.start())
    background.run(_until(ready))
    yield server
    background.run(server.stop(8))


@pytest.fixture(scope="session")
def tracks_mesh(background: Background, valkey: Valkey, tracks_triton: Triton, written: Written) -> Iterator[LocalMesh]:
    environ = {"MESH_MODELS": str(written.registry), "MESH_HEARTBEAT_S": "0.5"}
    options = Options(port=ports.free(), redis_url=valkey.url, triton_url=tracks_triton.url, environ=environ)
    with running_mesh(background, options) as mesh:
        yield mesh


@pytest.fixture
def http(tracks_mesh: LocalMesh) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=tracks_mesh.url, timeout=60) as client:
        yield client

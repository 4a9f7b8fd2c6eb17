"""A mesh with all four tracks: its own registry and Triton, the session's Valkey."""

from collections.abc import Iterator

import httpx
import pytest

from deploy.export import tracks
from deploy.export.tracks import Written
from deploy.local import ports
from deploy.local.supervisor import LocalMesh, Options
from deploy.local.triton import Triton
from deploy.local.valkey import Valkey
from tests.conftest import Background, running_mesh, running_triton


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return tracks.write(tmp_path_factory.mktemp("tracks"))


@pytest.fixture(scope="session")
def tracks_triton(background: Background, tmp_path_factory: pytest.TempPathFactory, written: Written) -> Iterator[Triton]:
    folder = tmp_path_factory.mktemp("triton")
    with running_triton(background, folder, written.repository, written.triton_models) as server:
        yield server


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

"""Workers that are replaced because they are old, under load: no job is lost, none fails, and none waits for a lease."""

import time
from collections.abc import Iterator

import httpx
import pytest

from deploy.local import ports
from deploy.local.supervisor import LocalMesh, Options
from tests.conftest import PHOTOS, Background, running_mesh

CAT = (PHOTOS / "chelsea.png").read_bytes()
KINDS = {"preprocess", "inference", "tasks"}
LIFETIME_S = 5
WITHIN_S = 60


@pytest.fixture
def aging(background: Background, mesh: LocalMesh) -> Iterator[LocalMesh]:
    """A mesh with a Redis of its own whose workers live for seconds."""
    environ = {"MESH_HEARTBEAT_S": "0.5", "MESH_WORKER_LIFETIME_S": str(LIFETIME_S)}
    with running_mesh(background, Options(port=ports.free(), environ=environ, triton_url=mesh.triton_url)) as own:
        yield own


def test_recycled_workers_lose_no_job_and_let_none_wait(aging: LocalMesh) -> None:
    processes: dict[str, set[int]] = {kind: set() for kind in KINDS}
    headers = {"content-type": "image/png", "prefer": "wait=25"}
    jobs = []
    deadline_s = time.monotonic() + WITHIN_S
    with httpx.Client(base_url=aging.url, timeout=30) as http:
        while min(len(pids) for pids in processes.values()) < 2:
            assert time.monotonic() < deadline_s, f"not all kinds were replaced: {processes}"
            jobs += [http.post("/v1/jobs", content=CAT, headers=headers).json() for _ in range(4)]
            for beat in http.get("/health").json()["workers"]:
                if beat["kind"] in KINDS:
                    processes[beat["kind"]].add(beat["pid"])
    assert {job["status"] for job in jobs} == {"succeeded"}
    assert {job["attempts"] for job in jobs} == {1}, "a job was taken a second time, after its lease"
    said = "".join((aging.folder / f"{kind}.log").read_text() for kind in KINDS)
    assert said.count('"why": "age"') >= len(KINDS)
    assert "queue.reclaimed" not in said
    assert '"level": "error"' not in said

"""The whole mesh on a Redis Cluster, with workers of several hosts that come and go while jobs run.

A host of its own is a worker in a mount namespace with another /dev/shm and another name: all that workers share by their host
is memory, so nothing else tells two hosts apart. Where namespaces may not be made, such a worker is told to share nothing.
"""

import base64
import contextlib
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from deploy.local import ports
from deploy.local.process import Process, python_module
from deploy.local.supervisor import LocalMesh, Options
from deploy.local.triton import Triton
from deploy.local.valkey import Valkey
from shared.store import keys
from tests.cluster import Nodes
from tests.conftest import WEBHOOK_SECRET, Background, running_mesh
from tests.gateway.receiver import receiving
from tests.system.load import CAT, Load
from visionmesh.cli import app

PARTITIONS = 3
ELSEWHERE = ["unshare", "--mount", "--uts", "sh", "-c"]
APART = "mount -t tmpfs -o size=64m none /dev/shm && hostname {name} && "


@pytest.fixture(scope="module")
def spread(background: Background, three_nodes: Nodes, valkey: Valkey, triton: Triton) -> Iterator[LocalMesh]:
    three_nodes.flush()
    environ = {"MESH_PARTITIONS": str(PARTITIONS), "MESH_HEARTBEAT_S": "0.5", "MESH_LEASE_S": "2"}
    environ |= {"MESH_TASKS_REDIS_URL": valkey.url, "MESH_WEBHOOK_SECRET": WEBHOOK_SECRET}
    environ |= {"MESH_WEBHOOK_PRIVATE_HOSTS": "127.0.0.1", "MESH_TRITON_CONTROL_KEY": triton.control_key}
    options = Options(port=ports.free(), redis_url=three_nodes.url, triton_url=triton.url, environ=environ)
    with running_mesh(background, options) as mesh:
        yield mesh


@pytest.fixture
def client(spread: LocalMesh) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=spread.url, timeout=40, limits=httpx.Limits(max_connections=16)) as client:
        yield client


def detect(client: httpx.Client, **query: str) -> dict[str, Any]:
    headers = {"content-type": "image/png", "prefer": "wait=30"}
    return client.post("/v1/jobs", params=query, content=CAT, headers=headers).json()


def partition_of(job: dict[str, Any]) -> int:
    return int.from_bytes(base64.b32decode(job["id"][:8].upper())[:2], "big")  # see `shared.store.ids`


def test_jobs_batches_pictures_and_webhooks_over_all_partitions(
    spread: LocalMesh, client: httpx.Client, three_nodes: Nodes
) -> None:
    with receiving() as receiver, ThreadPoolExecutor(8) as threads:
        url = receiver.answers_with("/told", [200] * 100)
        jobs = list(threads.map(lambda _: detect(client, callback_url=url, keep_upload="true"), range(24)))
        told = {receiver.next("/told").headers["webhook-id"] for _ in jobs}
    assert {job["status"] for job in jobs} == {"succeeded"}, jobs
    assert told == {job["id"] for job in jobs}
    assert set(map(partition_of, jobs)) == {0, 1, 2}
    of_last = next(job["id"] for job in jobs if partition_of(job) == PARTITIONS - 1)
    assert client.get(f"/v1/jobs/{of_last}").json()["detections"][0]["label"] == "cat"
    assert client.get(f"/v1/jobs/{of_last}/image").status_code == 200
    parts = [("images", ("cat.png", CAT, "image/png"))] * 3
    batch = client.post("/v1/batches", files=parts, headers={"prefer": "wait=20"})
    assert batch.json()["counts"]["succeeded"] == 3, batch.text
    health = client.get("/health").json()
    assert health["status"] == "ok"
    assert all(queue["waiting"] == queue["in_progress"] == 0 for queue in health["queues"].values())
    ends: Counter[str] = Counter()
    for partition in range(PARTITIONS):
        with three_nodes.client(three_nodes.primary_of(keys.live(partition))) as node:
            for _, fields in node.xrange(keys.results(partition, in_cluster=True)):
                ends[fields[b"id"].decode()] += 1
    assert all(ends[job["id"]] == 1 for job in jobs)


def test_the_command_line_knows_a_cluster(spread: LocalMesh, client: httpx.Client) -> None:
    jobs = [detect(client) for _ in range(4)]
    environ = spread.service_environ() | {"VISIONMESH_URL": spread.url}
    count = str(sum(1 for _ in jobs))
    heard = CliRunner().invoke(app, ["subscribe", "--json", "--after", "0", "--count", count], env=environ)
    assert heard.exit_code == 0, heard.output
    assert heard.stdout.count('"succeeded"') == len(jobs)
    found = CliRunner().invoke(app, ["doctor"], env=environ | {"MESH_METRICS_PORT": "0"})
    assert found.exit_code == 0, found.output
    assert "a cluster of 3 primaries" in found.stdout
    assert len(re.findall("holds partition [012]", found.stdout)) == PARTITIONS
    without = CliRunner().invoke(app, ["doctor"], env=environ | {"MESH_TASKS_REDIS_URL": "", "MESH_PARTITIONS": "1"})
    assert without.exit_code == 1
    assert "set MESH_TASKS_REDIS_URL" in without.stdout
    assert without.stdout.count("holds no partition") == PARTITIONS - 1


def test_webhooks_on_a_cluster_need_a_redis_for_their_queue(spread: LocalMesh) -> None:
    environ = spread.service_environ() | {"MESH_TASKS_REDIS_URL": ""}
    done = subprocess.run(python_module("gateway.tasks"), env=environ, capture_output=True, timeout=30, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("set MESH_TASKS_REDIS_URL")


# --- several hosts --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def elsewhere(mesh: LocalMesh, background: Background, module: str, name: str, folder: Path) -> Iterator[Process]:
    """A worker on a host of its own; told to stop, with time to end what it holds, when the block ends."""
    environ = mesh.service_environ()
    if subprocess.run([*ELSEWHERE, APART.format(name=name) + "true"], capture_output=True, timeout=20, check=False).returncode:
        environ, command = environ | {"MESH_TENSOR_STORE": "redis"}, python_module(module)
    else:
        command = [*ELSEWHERE, APART.format(name=name) + 'exec "$@"', "sh", *python_module(module)]
    process = Process(name, command, environ, folder / f"{name}.log")
    background.run(process.start())
    try:
        yield process
    finally:
        background.run(process.stop(20))
        assert process.returncode == 0, process.log.read_text("utf-8")


def workers(url: str, kind: str) -> list[dict[str, Any]]:
    return [beat for beat in httpx.get(f"{url}/health", timeout=20).json()["workers"] if beat["kind"] == kind]


def test_workers_of_other_hosts_join_and_leave_while_jobs_run(
    spread: LocalMesh, background: Background, tmp_path: Path
) -> None:
    def hosts_at_work(kind: str) -> set[str]:
        return {beat["name"] for beat in workers(spread.url, kind) if beat["jobs_done"] > 2}

    def stores(kind: str) -> set[str]:
        return {beat["details"]["tensor_store"] for beat in workers(spread.url, kind)}

    with Load(spread.url, clients=4) as load:
        load.until(lambda: stores("preprocess") == {"shm"})  # one host so far: nothing travels
        with elsewhere(spread, background, "preprocess_worker", "host-b", tmp_path):
            # Its pixels come through Redis, and are put into the memory that inference worker and Triton share here.
            load.until(lambda: len(hosts_at_work("preprocess")) == 2)
            assert stores("preprocess") == {"shm", "redis"}
            assert stores("inference") == {"shm"}
            with elsewhere(spread, background, "inference_worker", "host-c", tmp_path):
                # It reaches nobody's memory, so from now on all pixels come through Redis.
                load.until(lambda: len(hosts_at_work("inference")) == 2)
                load.until(lambda: stores("preprocess") == {"redis"})
        load.until(lambda: len(workers(spread.url, "preprocess")) == len(workers(spread.url, "inference")) == 1)
        load.until(lambda: stores("preprocess") == {"shm"})
    assert set(map(partition_of, load.jobs)) == {0, 1, 2}

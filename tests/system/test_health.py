"""Every row of what is promised of the health endpoints: each thing they tell is compared with another witness of it."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest
import pyvips
import redis

from deploy.export.registry_file import RegistryFile
from deploy.local.supervisor import LocalMesh
from deploy.local.valkey import Valkey
from shared import models
from shared.live_file import FOLLOWED_S
from shared.store.arena import FOLDER
from shared.store.budget import SHARE_OF_MAXMEMORY
from shared.store.jobs import RESULT_RESERVE_BYTES
from tests.conftest import PHOTOS, Background
from tests.gateway.conftest import gateway_process

CAT = (PHOTOS / "chelsea.png").read_bytes()
PNG = {"content-type": "image/png"}


@pytest.fixture(scope="module")
def lonely(background: Background, valkey: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A gateway with a Redis and nobody else."""
    with contextlib.closing(redis.Redis.from_url(valkey.url)) as client:
        client.flushall()
    folder = tmp_path_factory.mktemp("lonely")
    with gateway_process(background, folder, valkey.url, {}) as url, httpx.Client(base_url=url, timeout=20) as http:
        yield http


def test_it_is_live_and_ready_where_all_is_there(http: httpx.Client) -> None:
    for path in ("/livez", "/v2/health/live"):
        assert (http.get(path).status_code, http.get(path).json()) == (200, {"live": True})
    ready = http.get("/readyz")
    checks = {"redis": True, "preprocess_worker": True, "inference_worker": True, "model": True}
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "checks": checks})
    assert (http.get("/v2/health/ready").status_code, http.get("/v2/health/ready").json()) == (200, {"ready": True})


def test_it_is_live_but_not_ready_without_workers_and_says_what_is_missing(lonely: httpx.Client) -> None:
    assert [lonely.get(path).status_code for path in ("/livez", "/v2/health/live", "/v2/health/ready")] == [200, 200, 503]
    ready = lonely.get("/readyz")
    checks = {"redis": True, "preprocess_worker": False, "inference_worker": False, "model": False}
    assert (ready.status_code, ready.json()) == (503, {"ready": False, "checks": checks})
    told = lonely.get("/health")
    assert (told.status_code, told.json()["status"], told.json()["checks"]) == (200, "degraded", checks)
    nothing = {"libvips": None, "libvips_simd": False, "connection_pooling": False, "shared_memory": False}
    assert told.json()["optimizations"] == nothing | {"msgspec": msgspec.__version__, "middleware": True}


def test_it_is_not_ready_without_its_model(mesh: LocalMesh, http: httpx.Client) -> None:
    file = models.user_file()
    assert file
    try:
        say(file, loaded=False)
        ready = http.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["model"]) == (503, False)
        assert http.get("/health").json()["models"]["small"] == {"ready": False}
        alerting = httpx.get(f"http://127.0.0.1:{mesh.metrics_ports['gateway']}/metrics").text
        assert 'mesh_model_ready{model="small_end2end"}' in alerting
        assert 'mesh_model_ready{model="small"}' not in alerting  # nobody is to be woken for what was asked for
    finally:
        say(file, loaded=True)
    assert http.get("/readyz").status_code == 200


def say(file: Path, *, loaded: bool) -> None:
    registry = RegistryFile(file)
    registry.keep("small", loaded=loaded)
    registry.save()
    time.sleep(FOLLOWED_S)


def test_the_gateway_tells_of_itself(http: httpx.Client) -> None:
    first, second = http.get("/health").json(), http.get("/health").json()
    assert first["status"] == "ok"
    assert 0 < first["uptime_s"] <= second["uptime_s"]
    process = psutil.Process(second["process"]["pid"])
    assert 0.5 < second["process"]["rss_bytes"] / process.memory_info().rss < 2
    assert second["process"]["cpu_percent"] >= 0
    assert second["uptime_s"] <= time.time() - process.create_time() + 1
    assert (first["registry_problem"], first["keys_problem"]) == (None, None)


def test_every_worker_tells_of_itself(mesh: LocalMesh, http: httpx.Client) -> None:
    before = {beat["name"]: beat["jobs_done"] for beat in http.get("/health").json()["workers"]}
    job = http.post("/v1/jobs", content=CAT, headers=PNG | {"prefer": "wait=25"}).json()
    assert job["status"] == "succeeded"
    deadline_s = time.monotonic() + 15
    while True:
        workers = {beat["kind"]: beat for beat in http.get("/health").json()["workers"]}
        done = [workers[kind]["jobs_done"] - before.get(workers[kind]["name"], 0) for kind in ("preprocess", "inference")]
        if all(done) or time.monotonic() > deadline_s:
            break
        time.sleep(0.1)
    assert all(done)  # told with the next beat
    assert set(workers) == {"gateway", "preprocess", "inference", "tasks"}
    for kind, beat in workers.items():
        assert beat["host"] == os.uname().nodename
        if kind != "gateway":  # Granian's processes are not the one that was started
            assert beat["pid"] == mesh.processes[kind].pid
        assert 0.5 < beat["rss_bytes"] / psutil.Process(beat["pid"]).memory_info().rss < 2
        assert beat["cpu_percent"] >= 0
        assert beat["age_ms"] < 10_000
        assert beat["gpu"] is None or beat["gpu"][0]["memory_total_bytes"] > 0
    assert set(workers["inference"]["models"]) >= {"small", "small_end2end"}
    assert workers["inference"]["details"]["triton_models"]["small"] == {"model": "small", "state": "READY", "reason": ""}
    assert http.get("/health").json()["models"]["small"] == {"ready": True}


def test_queues_tell_how_many_wait_and_for_how_long(lonely: httpx.Client) -> None:
    before = lonely.get("/health").json()
    assert set(before["queues"]) == {"preprocess", "inference:small", "inference:small_end2end"}
    assert before["queues"]["preprocess"]["waiting"] == 0
    sent_s = time.monotonic()
    ids = [lonely.post("/v1/jobs", content=CAT, headers=PNG).json()["id"] for _ in range(3)]
    after = lonely.get("/health").json()
    preprocess = after["queues"]["preprocess"]
    assert (preprocess["waiting"], preprocess["in_progress"], preprocess["overdue_leases"]) == (3, 0, 0)
    assert 0 <= preprocess["oldest_age_ms"] <= (time.monotonic() - sent_s) * 1000 + 50
    reserved_each = len(CAT) + models.load().get("small").tensor_bytes + RESULT_RESERVE_BYTES
    assert after["byte_budget"]["reserved_bytes"] - before["byte_budget"]["reserved_bytes"] == 3 * reserved_each
    assert lonely.get("/health").json()["queues"]["preprocess"]["oldest_age_ms"] > preprocess["oldest_age_ms"]
    for job_id in ids:
        lonely.delete(f"/v1/jobs/{job_id}")
    ended = lonely.get("/health").json()
    assert (ended["queues"]["preprocess"]["waiting"], ended["byte_budget"]) == (0, before["byte_budget"])


def test_the_byte_budget_is_of_redis_memory(mesh: LocalMesh, http: httpx.Client) -> None:
    with contextlib.closing(redis.Redis.from_url(mesh.redis_url)) as client:
        most_bytes = int(client.info("memory")["maxmemory"])  # type: ignore[index]
    assert http.get("/health").json()["byte_budget"]["limit_bytes"] == int(most_bytes * SHARE_OF_MAXMEMORY)


def test_optimizations_are_those_that_are_on(mesh: LocalMesh, http: httpx.Client) -> None:
    answer = http.get("/health")
    told = answer.json()
    details = {beat["kind"]: beat["details"] for beat in told["workers"]}
    on = told["optimizations"]
    assert on["msgspec"] == msgspec.__version__
    assert on["libvips"] == ".".join(str(pyvips.version(part)) for part in range(3))
    assert on["libvips_simd"] is engine_has_simd({})
    assert on["connection_pooling"] is (details["inference"]["triton_clients"] > 0)
    pool = http.get("/connection_pool_info").json()["shared_client_pool"]
    assert pool["connection_count"] == details["inference"]["triton_clients"]
    assert on["middleware"] is ("x-process-time" in answer.headers)
    shared = [details[kind]["tensor_store"] == "shm" for kind in ("preprocess", "inference")]
    assert on["shared_memory"] is (all(shared) and (FOLDER / details["preprocess"]["arena"]).exists())
    assert set(on) == {"msgspec", "libvips", "libvips_simd", "connection_pooling", "middleware", "shared_memory"}


def engine_has_simd(environ: dict[str, str]) -> bool:
    code = "from preprocess_worker import decoding; print(decoding.engine()[1])"
    return subprocess.check_output([sys.executable, "-c", code], env=os.environ | environ, text=True).strip() == "True"


def test_simd_that_is_turned_off_is_not_claimed() -> None:
    assert not engine_has_simd({"VIPS_NOVECTOR": "1"})


def test_metrics_are_never_on_the_public_port(mesh: LocalMesh, http: httpx.Client) -> None:
    for path in ("/metrics", "/metrics/", "/targets"):
        assert http.get(path).status_code == 404, path
    private = httpx.get(f"http://127.0.0.1:{mesh.metrics_ports['gateway']}/metrics")
    assert (private.status_code, "mesh_queue_depth" in private.text) == (200, True)
    assert mesh.metrics_ports["gateway"] != mesh.port

"""What Prometheus scrapes from a real mesh is what was really sent through it."""

import os
import signal
import time
from collections.abc import Iterator

import httpx
import pytest

from deploy.local import ports
from deploy.local.supervisor import LocalMesh, Options
from shared import errors
from tests.conftest import PHOTOS, Background, running_mesh
from tests.scraping import scrape, scrape_all, sum_of

CAT = (PHOTOS / "chelsea.png").read_bytes()
BROKEN = CAT[:2000]
STAGES = ("upload", "preprocess_wait", "preprocess", "inference_wait", "inference", "postprocess", "total")


def send(http: httpx.Client, body: bytes, **query: str) -> dict[str, object]:
    headers = {"content-type": "image/png", "prefer": "wait=25"}
    return http.post("/v1/jobs", params=query, content=body, headers=headers).json()


def test_counts_are_those_of_the_jobs_sent(mesh: LocalMesh, http: httpx.Client) -> None:
    before = scrape_all(mesh)
    good = [send(http, CAT) for _ in range(4)] + [send(http, CAT, model="small_end2end")]
    bad = send(http, BROKEN)
    assert [job["status"] for job in good] == ["succeeded"] * 5
    assert bad["error"]["code"] == "corrupt-image"
    assert http.post("/v1/jobs", content=b"no picture at all, but long enough").status_code == 415
    after = scrape_all(mesh)

    def more(name: str, **labels: str) -> float:
        return sum_of(after, name, **labels) - sum_of(before, name, **labels)

    assert more("mesh_jobs_accepted_total") == 6
    assert more("mesh_jobs_total", status="succeeded", code="") == 5
    assert more("mesh_jobs_total", status="failed", code="corrupt-image") == 1
    assert more("mesh_jobs_total") == 6
    assert more("mesh_admission_refusals_total", code="unsupported-media") == 1
    assert more("mesh_admission_refusals_total") == 1
    for stage in STAGES:
        assert more("mesh_stage_duration_seconds_count", stage=stage, model="small", track="B") >= 4, stage
        assert more("mesh_stage_duration_seconds_count", stage=stage, model="small_end2end", track="C") == 1, stage
        assert more("mesh_stage_duration_seconds_sum", stage=stage) < 60
    assert more("mesh_batch_size_sum", model="small") == 4
    assert 0 < more("mesh_batch_fill_ratio_sum", model="small") <= 4
    assert more("mesh_http_requests_total", route="/v1/jobs", method="POST", status="200") == 6
    assert more("mesh_http_request_duration_seconds_count", route="/v1/jobs") == 7


def test_the_gateway_tells_what_is_true_of_the_whole_mesh(mesh: LocalMesh, http: httpx.Client) -> None:
    samples = scrape(mesh.metrics_ports["gateway"])
    assert sum_of(samples, "mesh_store_up") == 1
    for kind in ("gateway", "preprocess", "inference"):
        assert sum_of(samples, "mesh_workers", kind=kind) == 1
    assert sum_of(samples, "mesh_model_ready", model="small") == 1
    assert sum_of(samples, "mesh_byte_budget_bytes") > 1 << 20
    for name in ("mesh_queue_oldest_age_seconds", "mesh_leases_overdue", "mesh_queue_depth"):
        stages = {dict(has)["stage"] for found, has in samples if found == name}
        assert {"preprocess", "inference:small"} <= stages
    assert sum_of(scrape(mesh.metrics_ports["preprocess"]), "mesh_decoders") >= 1
    slots = scrape(mesh.metrics_ports["preprocess"])
    assert 0 <= sum_of(slots, "mesh_tensor_slots", state="busy") <= sum_of(slots, "mesh_tensor_slots", state="all")
    assert sum_of(slots, "mesh_tensor_slots", state="all") > 0
    targets = httpx.get(f"http://127.0.0.1:{mesh.metrics_ports['gateway']}/targets").json()
    told = {entry["targets"][0].rpartition(":")[2]: entry["labels"]["kind"] for entry in targets}
    assert {str(port): name.split("-")[0] for name, port in mesh.metrics_ports.items()} == told


def test_labels_are_bounded(mesh: LocalMesh, http: httpx.Client) -> None:
    for name in ("nothing", "at", "all"):
        http.get(f"/{name}")
        http.get(f"/v1/jobs/{name}")
        http.post("/v1/jobs", params={"model": name}, content=CAT)
    samples = scrape_all(mesh)
    text = repr(sorted(samples))
    assert "/nothing" not in text
    assert "'at'" not in text
    assert sum_of(samples, "mesh_http_requests_total", route="none", status="404") >= 3
    codes = {dict(has)["code"] for found, has in samples if found.endswith("_total") and "code" in dict(has)}
    assert codes <= {*errors.BY_CODE, ""}


def test_every_process_says_whether_it_lives_and_is_ready(mesh: LocalMesh) -> None:
    for port in mesh.metrics_ports.values():
        assert httpx.get(f"http://127.0.0.1:{port}/livez").text == "live\n"
        assert httpx.get(f"http://127.0.0.1:{port}/readyz").text == "ready\n"
        assert httpx.get(f"http://127.0.0.1:{port}/else").status_code == 404


def test_metrics_are_never_on_the_public_port(http: httpx.Client) -> None:
    assert http.get("/metrics").status_code == 404


@pytest.fixture
def two_gateways(background: Background, mesh: LocalMesh) -> Iterator[LocalMesh]:
    environ = {"MESH_HEARTBEAT_S": "0.5", "MESH_GATEWAY_WORKERS": "2"}
    options = Options(port=ports.free(), environ=environ, redis_url=mesh.redis_url, triton_url=mesh.triton_url)
    with running_mesh(background, options) as other:
        yield other


def test_counts_survive_the_recycling_of_gateway_processes(two_gateways: LocalMesh) -> None:
    port = two_gateways.metrics_ports["gateway"]
    requests = {"method": "GET", "route": "/livez", "status": "200"}

    def ask(times: int) -> None:
        for _ in range(times):  # a connection each, so that both processes get some
            assert httpx.get(f"{two_gateways.url}/livez").status_code == 200

    ask(20)
    assert sum_of(scrape(port), "mesh_http_requests_total", **requests) == 20
    old = worker_pids(two_gateways)
    assert len(old) == 2
    os.kill(two_gateways.processes["gateway"].pid or 0, signal.SIGHUP)  # Granian replaces them one after the other
    for _ in range(400):
        if len(worker_pids(two_gateways)) == 2 and not worker_pids(two_gateways) & old:
            break
        time.sleep(0.05)  # the new ones need the cores to start
    assert not worker_pids(two_gateways) & old
    ask(20)
    first = scrape(port)
    assert sum_of(first, "mesh_http_requests_total", **requests) == 40
    assert sum_of(first, "mesh_http_request_duration_seconds_count", route="/livez") == 40
    assert sum_of(scrape(port), "mesh_http_requests_total", **requests) == 40, "folding twice changes nothing"


def worker_pids(mesh: LocalMesh) -> set[int]:
    found = httpx.get(f"{mesh.url}/health").json()["workers"]
    parent = mesh.processes["gateway"].pid
    return {beat["pid"] for beat in found if beat["kind"] == "gateway" and parent_of(beat["pid"]) == parent}


def parent_of(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0

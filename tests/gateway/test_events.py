"""`GET /v1/jobs/ID/events` of a real gateway: every state once, in order, resumable, and ended when it should be."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import httpx
import msgspec
import pytest
import redis

from deploy.local import ports
from deploy.local.process import Process, python_module
from deploy.local.supervisor import LocalMesh
from shared.messages import Job
from tests.conftest import PHOTOS, Background
from visionmesh import Client

CAT = (PHOTOS / "chelsea.png").read_bytes()
PNG = {"content-type": "image/png"}


def lines_of(answer: httpx.Response) -> list[tuple[str, str, Job]]:
    """ID, event and job of each event of a stream, read to its end."""
    found = []
    for block in answer.read().decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith((":", "retry")))
        if fields:
            found.append((fields["id"], fields["event"], msgspec.json.decode(fields["data"], type=Job)))
    return found


def submit(http: httpx.Client) -> str:
    answer = http.post("/v1/jobs", content=CAT, headers=PNG)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def test_the_stream_ends_with_the_result(http: httpx.Client) -> None:
    job_id = submit(http)
    with http.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = lines_of(answer)
    ranks = [event_id for event_id, _, _ in events]
    assert ranks[-1] == "end"
    assert ranks[:-1] == sorted(set(ranks[:-1]))
    assert all(event == job.status for _, event, job in events)
    assert [found.label for found in events[-1][2].detections or ()] == ["cat"]


def test_what_was_seen_is_not_told_again(http: httpx.Client) -> None:
    job_id = submit(http)
    http.get(f"/v1/jobs/{job_id}", params={"wait": 20})
    (only,) = lines_of(http.get(f"/v1/jobs/{job_id}/events", headers={"last-event-id": "1.2"}))
    assert only[:2] == ("end", "succeeded")
    assert http.get(f"/v1/jobs/{job_id}/events", headers={"last-event-id": "end"}).status_code == 204
    assert len(lines_of(http.get(f"/v1/jobs/{job_id}/events", headers={"last-event-id": "nonsense"}))) == 1


def test_an_unknown_job_is_a_problem_not_a_stream(http: httpx.Client) -> None:
    answer = http.get("/v1/jobs/nosuchjob/events")
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown-job")


def test_our_client_reads_it(mesh: LocalMesh) -> None:
    with Client(mesh.url) as client:
        states = [step.status for step in client.submit(CAT).events()]
    assert states[-1] == "succeeded"
    assert set(states) <= {"queued", "processing", "succeeded"}


@pytest.fixture
def idle_gateway(background: Background, redis_url: str, tmp_path) -> Iterator[tuple[Process, httpx.Client]]:
    """A gateway without workers: its jobs stay queued."""
    port = ports.free()
    environ = {"MESH_REDIS_URL": redis_url, "MESH_PORT": str(port), "PATH": ""}
    gateway = Process("gateway", python_module("gateway"), environ, tmp_path / "gateway.log")
    background.run(gateway.start())
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
            deadline = time.monotonic() + 20
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if http.get("/livez").status_code == 200:
                        break
                assert time.monotonic() < deadline, gateway.last_line()
            yield gateway, http
    finally:
        background.run(gateway.stop(5))


def subscribers(redis_url: str, job_id: str) -> int:
    with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
        return dict(client.pubsub_numsub(f"mesh:jobs:{job_id}"))[f"mesh:jobs:{job_id}".encode()]


def test_a_reader_that_goes_is_forgotten_and_a_stop_ends_the_stream(
    background: Background, idle_gateway: tuple[Process, httpx.Client], redis_url: str
) -> None:
    gateway, http = idle_gateway
    job_id = submit(http)
    with http.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        lines = answer.iter_lines()
        assert next(line for line in lines if line.startswith("event")) == "event: queued"
        assert subscribers(redis_url, job_id) == 1
    deadline = time.monotonic() + 5
    while subscribers(redis_url, job_id):
        assert time.monotonic() < deadline, "the reader is gone, its subscription is not"
        time.sleep(0.02)

    canceled = submit(http)
    with http.stream("GET", f"/v1/jobs/{canceled}/events") as answer:
        lines = answer.iter_lines()
        assert next(line for line in lines if line.startswith("event")) == "event: queued"
        httpx.post(f"{http.base_url}/v1/jobs/{canceled}/cancel")
        assert [line for line in lines if line.startswith("event")] == ["event: canceled"]

    with http.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        lines = answer.iter_lines()
        assert next(line for line in lines if line.startswith("event")) == "event: queued"
        started = time.monotonic()
        assert gateway.pid is not None
        os.kill(gateway.pid, signal.SIGTERM)
        assert not [line for line in lines if line.startswith("event")]
    assert background.run(gateway.wait()) is not None
    assert time.monotonic() - started < 5

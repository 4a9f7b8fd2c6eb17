"""Processes that die or stop in the middle of work: every accepted job ends, once."""

import asyncio
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
from deploy.local.supervisor import LocalMesh, Options
from tests.chaos.memory import busy_slots
from tests.conftest import PHOTOS, Background, running_mesh

PHOTO = (PHOTOS / "astronaut.png").read_bytes()
JOBS = 24


@pytest.fixture(scope="module")
def fragile(background: Background) -> Iterator[LocalMesh]:
    """A mesh of our own to hurt, with leases so short that waiting for them is no hardship."""
    environ = {"MESH_LEASE_S": "1", "MESH_HEARTBEAT_S": "0.5"}
    with running_mesh(background, Options(port=ports.free(), environ=environ)) as mesh:
        yield mesh


def submit(mesh: LocalMesh, count: int) -> list[str]:
    with httpx.Client(base_url=mesh.url, timeout=30) as http:
        answers = [http.post("/v1/jobs", content=PHOTO, headers={"content-type": "image/png"}) for _ in range(count)]
    assert {answer.status_code for answer in answers} == {202}
    return [answer.json()["id"] for answer in answers]


def ends(mesh: LocalMesh, ids: list[str]) -> list[str]:
    """How each job ended, waiting for it."""
    found = []
    with httpx.Client(base_url=mesh.url, timeout=60) as http:
        for job_id in ids:
            job = http.get(f"/v1/jobs/{job_id}", params={"wait": 25}).json()
            found.append(job["status"])
            if job["status"] == "succeeded":
                assert job["detections"][0]["label"] == "person"
    return found


def assert_no_slot_is_leaked(mesh: LocalMesh) -> None:
    """All slots of shared memory that a live preprocess worker owns are free again."""
    assert asyncio.run(busy_slots(mesh)) == {}


@pytest.mark.parametrize("part", ["preprocess", "inference", "triton"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_goes_loses_no_job(fragile: LocalMesh, part: str, number: signal.Signals) -> None:
    with contextlib.closing(redis.Redis.from_url(fragile.redis_url)) as client, contextlib.closing(client.pubsub()) as pubsub:
        pubsub.subscribe("mesh:results")
        assert pubsub.get_message(timeout=5)["type"] == "subscribe"
        ids = submit(fragile, JOBS)
        pid = fragile.processes[part].pid
        assert pid
        assert pubsub.get_message(timeout=20), "work is under way"
        os.kill(pid, number)
        assert ends(fragile, ids) == ["succeeded"] * JOBS
        told = 1
        while told < JOBS:
            assert pubsub.get_message(timeout=5), f"only {told} of {JOBS} results were published"
            told += 1
        assert pubsub.get_message(timeout=0.2) is None, "a result was published twice"
    assert_no_slot_is_leaked(fragile)


def test_shared_memory_is_what_is_used(fragile: LocalMesh) -> None:
    with httpx.Client(base_url=fragile.url, timeout=30) as http:
        deadline_s = time.monotonic() + 10
        while not http.get("/health").json()["optimizations"]["shared_memory"]:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        assert ends(fragile, submit(fragile, 4)) == ["succeeded"] * 4
    with contextlib.closing(redis.Redis.from_url(fragile.redis_url)) as client:
        assert not list(client.scan_iter("*:tensor:*"))
    assert_no_slot_is_leaked(fragile)


def test_a_gateway_that_dies_loses_no_job(fragile: LocalMesh) -> None:
    ids = submit(fragile, JOBS)
    pid = fragile.processes["gateway"].pid
    assert pid
    with contextlib.closing(redis.Redis.from_url(fragile.redis_url)) as client:
        os.kill(pid, signal.SIGKILL)
        last, ended = "0", set()
        while not set(ids) <= ended:
            answer = client.xread({"mesh:stream:results": last}, block=20_000)
            assert answer, f"{len(set(ids) - ended)} jobs did not end"
            for entry_id, fields in answer[0][1]:
                last = entry_id
                job = msgspec.msgpack.decode(fields[b"job"])
                ended.add(job["id"])
                assert job["status"] == "succeeded"
    with httpx.Client(transport=httpx.HTTPTransport(retries=8), timeout=30) as http:
        assert http.get(f"{fragile.url}/v1/jobs/{ids[0]}").json()["status"] == "succeeded"

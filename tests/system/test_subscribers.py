"""Results by Redis: pub/sub in both encodings, and the durable stream."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
import redis

from deploy.local import ports
from deploy.local.supervisor import LocalMesh, Options
from tests.conftest import PHOTOS, Background, running_mesh

CAT = (PHOTOS / "chelsea.png").read_bytes()


def submit(http: httpx.Client, model: str = "small") -> str:
    answer = http.post("/v1/jobs", params={"model": model}, content=CAT, headers={"content-type": "image/png"})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


@contextlib.contextmanager
def subscribed(url: str, *channels: str) -> Iterator[Any]:
    """A subscription that Redis has confirmed."""
    with contextlib.closing(redis.Redis.from_url(url)) as client, contextlib.closing(client.pubsub()) as pubsub:
        pubsub.subscribe(*channels)
        for _ in channels:
            assert pubsub.get_message(timeout=5)["type"] == "subscribe"
        yield pubsub


def next_payload(pubsub: Any) -> bytes:
    message = pubsub.get_message(timeout=20)
    assert message is not None, "no event came"
    return message["data"]


@pytest.mark.parametrize("channel", ["mesh:results", "mesh:results:small"])
def test_every_finished_job_comes_as_messagepack(mesh: LocalMesh, http: httpx.Client, channel: str) -> None:
    with subscribed(mesh.redis_url, channel) as pubsub:
        job_id = submit(http)
        job = msgspec.msgpack.decode(next_payload(pubsub))
    assert (job["id"], job["status"]) == (job_id, "succeeded")
    assert job["detections"][0]["label"] == "cat"
    assert job == http.get(f"/v1/jobs/{job_id}").json()


def test_another_models_channel_stays_silent(mesh: LocalMesh, http: httpx.Client) -> None:
    with subscribed(mesh.redis_url, "mesh:results:small_end2end") as pubsub:
        submit(http, "small")
        wanted = submit(http, "small_end2end")
        assert msgspec.msgpack.decode(next_payload(pubsub))["id"] == wanted


def test_a_jobs_channel_tells_its_steps(mesh: LocalMesh, http: httpx.Client) -> None:
    with contextlib.closing(redis.Redis.from_url(mesh.redis_url)) as client, contextlib.closing(client.pubsub()) as pubsub:
        pubsub.psubscribe("mesh:jobs:*")
        assert pubsub.get_message(timeout=5)["type"] == "psubscribe"
        job_id = submit(http)
        states = []
        while "succeeded" not in states:
            job = msgspec.msgpack.decode(next_payload(pubsub))
            assert job["id"] == job_id
            states.append(job["status"])
    assert states == ["queued", "processing", "succeeded"]


def test_the_results_stream_keeps_what_nobody_heard(mesh: LocalMesh, http: httpx.Client) -> None:
    with contextlib.closing(redis.Redis.from_url(mesh.redis_url)) as client:
        last = client.xinfo_stream("mesh:stream:results")["last-generated-id"] if client.exists("mesh:stream:results") else "0"
        ids = [submit(http) for _ in range(3)]
        for job_id in ids:
            assert http.get(f"/v1/jobs/{job_id}", params={"wait": 20}).json()["status"] == "succeeded"
        group = f"reader-{ids[0]}"
        client.xgroup_create("mesh:stream:results", group, id=last)
        entries = client.xreadgroup(group, "one", {"mesh:stream:results": ">"}, count=10)[0][1]
        assert sorted(fields[b"id"].decode() for _, fields in entries) == sorted(ids)
        for _, fields in entries:
            assert msgspec.msgpack.decode(fields[b"job"])["status"] == "succeeded"


def test_events_can_be_json(background: Background, mesh: LocalMesh) -> None:
    # A second gateway and workers on servers that run already: what MESH_REDIS_URL and MESH_TRITON_URL are for.
    options = Options(
        port=ports.free(),
        redis_url=mesh.redis_url.removesuffix("/0") + "/1",
        triton_url=mesh.triton_url,
        environ={"MESH_EVENT_ENCODING": "json"},
    )
    with running_mesh(background, options) as other, httpx.Client(base_url=other.url, timeout=30) as http:
        assert set(other.processes) == {"gateway", "tasks", "preprocess", "inference"}
        with subscribed(other.redis_url, "mesh:results") as pubsub:
            job_id = submit(http)
            payload = next_payload(pubsub)
            while json.loads(payload)["id"] != job_id:  # channels know no databases
                payload = next_payload(pubsub)
        assert json.loads(payload) == http.get(f"/v1/jobs/{job_id}").json()
        assert http.get(f"/v1/jobs/{submit(http)}", params={"wait": 20}).json()["status"] == "succeeded"

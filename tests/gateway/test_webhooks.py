"""Webhooks from the whole mesh to a real receiver: signed, retried, given up, logged, and never sent inwards."""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import queue
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from deploy.local.supervisor import LocalMesh
from gateway import addresses, webhooks
from gateway.addresses import Exceptions, RefusedError
from shared.settings import read
from tests.conftest import PHOTOS, WEBHOOK_SECRET
from tests.gateway.receiver import Came, Hold, Receiver, receiving

CAT = (PHOTOS / "chelsea.png").read_bytes()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def submit(http: httpx.Client, url: str) -> str:
    answer = http.post("/v1/jobs", params={"callback_url": url}, files={"image": CAT})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def verified(came: Came) -> dict[str, Any]:
    """The document, its signature checked as a receiver would, with nothing of ours."""
    content = f"{came.headers['webhook-id']}.{came.headers['webhook-timestamp']}.".encode() + came.body
    key = base64.b64decode(WEBHOOK_SECRET.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    assert came.headers["webhook-signature"] == f"v1,{expected}"
    assert abs(int(came.headers["webhook-timestamp"]) - time.time()) < 60
    return json.loads(came.body)


def deliveries(http: httpx.Client, path: str, count: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 20
    while len(found := http.get(f"{path}/deliveries").json()["deliveries"]) < count:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def test_a_finished_job_is_told_signed(http: httpx.Client, receiver: Receiver) -> None:
    job_id = submit(http, receiver.answers_with("/good", [200]))
    came = receiver.next("/good")
    document = verified(came)
    assert came.headers["webhook-id"] == job_id == document["data"]["id"]
    assert came.headers["content-type"] == "application/json"
    assert document["type"] == "job.succeeded"
    assert document["data"] == http.get(f"/v1/jobs/{job_id}").json()
    (delivery,) = deliveries(http, f"/v1/jobs/{job_id}", 1)
    assert (delivery["delivered"], delivery["status"], delivery["next_at"]) == (True, 200, None)


def test_a_failed_job_is_told_as_well(http: httpx.Client, receiver: Receiver) -> None:
    url = receiver.answers_with("/failed", [204])
    http.post("/v1/jobs", params={"callback_url": url}, files={"image": CAT[:2000]})
    document = verified(receiver.next("/failed"))
    assert (document["type"], document["data"]["error"]["code"]) == ("job.failed", "corrupt-image")


def test_a_batch_is_told_once_when_its_last_job_ended(http: httpx.Client, receiver: Receiver) -> None:
    url = receiver.answers_with("/batch", [200])
    files = [("images", CAT), ("images", b"no picture"), ("images", CAT)]
    batch_id = http.post("/v1/batches", params={"callback_url": url}, files=files).json()["id"]
    document = verified(receiver.next("/batch"))
    assert (document["type"], document["data"]["id"]) == ("batch.finished", batch_id)
    assert document["data"]["counts"] == {"succeeded": 2, "failed": 0, "canceled": 0, "expired": 0, "refused": 1}
    assert len(deliveries(http, f"/v1/batches/{batch_id}", 1)) == 1
    assert receiver.of("/batch").empty()


def test_what_is_not_taken_is_tried_again_under_the_same_id(http: httpx.Client, receiver: Receiver) -> None:
    job_id = submit(http, receiver.answers_with("/later", [500, 503, 200]))
    ids = {receiver.next("/later").headers["webhook-id"] for _ in range(3)}
    assert ids == {job_id}
    tries = deliveries(http, f"/v1/jobs/{job_id}", 3)
    assert [one["status"] for one in tries] == [500, 503, 200]
    assert [one["delivered"] for one in tries] == [False, False, True]
    assert [bool(one["next_at"]) for one in tries] == [True, True, False]


def test_it_gives_up_at_the_limit(http: httpx.Client, receiver: Receiver) -> None:
    job_id = submit(http, receiver.answers_with("/never", [500]))
    tries = deliveries(http, f"/v1/jobs/{job_id}", 3)
    assert (tries[-1]["attempt"], tries[-1]["next_at"]) == (3, None)


def test_a_tasks_process_that_is_killed_loses_nothing(mesh: LocalMesh, http: httpx.Client, receiver: Receiver) -> None:
    killed = mesh.processes["tasks"].pid
    assert killed
    os.kill(killed, signal.SIGKILL)
    job_id = submit(http, receiver.answers_with("/killed", [200]))
    assert verified(receiver.next("/killed", timeout_s=30))["data"]["id"] == job_id


def test_a_tasks_process_that_is_stopped_ends_what_it_is_telling(
    mesh: LocalMesh, http: httpx.Client, receiver: Receiver
) -> None:
    hold = receiver.holds["/held"] = Hold()
    job_id = submit(http, receiver.answers_with("/held", [200]))
    assert hold.began.wait(20)
    os.kill(mesh.processes["tasks"].pid or 0, signal.SIGTERM)
    time.sleep(1)  # a process that canceled it would be gone by now, and tell it again
    hold.ends.set()
    (delivery,) = deliveries(http, f"/v1/jobs/{job_id}", 1)
    assert (delivery["attempt"], delivery["delivered"]) == (1, True)


def test_gone_is_final(http: httpx.Client, receiver: Receiver) -> None:
    job_id = submit(http, receiver.answers_with("/gone", [410]))
    (only,) = deliveries(http, f"/v1/jobs/{job_id}", 1)
    assert (only["status"], only["delivered"], only["next_at"]) == (410, False, None)


def test_a_redirect_is_not_followed(http: httpx.Client, receiver: Receiver) -> None:
    elsewhere = receiver.answers_with("/elsewhere", [200])
    job_id = submit(http, receiver.answers_with("/redirect", [(302, {"location": elsewhere})]))
    tries = deliveries(http, f"/v1/jobs/{job_id}", 1)
    assert tries[0]["status"] == 302
    assert "redirect" in tries[0]["error"]
    with pytest.raises(queue.Empty):
        receiver.next("/elsewhere", timeout_s=0.5)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:1/",
        "http://10.0.0.1/",
        "http://192.168.1.1/x",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[64:ff9b::a00:1]/",
        "http://[2002:a00:1::]/",
        "http://0.0.0.0/",
        "http://224.0.0.1/",
        "http://100.64.0.1/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "http://name:secret@example.com/",
        "http://",
        "http://exa mple.com/",
        "https://example.com:99999/",
        "http://example.com/" + "x" * 3000,
    ],
)
def test_addresses_inside_are_refused_when_the_job_is_sent(http: httpx.Client, url: str) -> None:
    answer = http.post("/v1/jobs", params={"callback_url": url}, files={"image": CAT})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-parameter")
    assert "callback_url" in answer.json()["detail"]


async def _sent(url: str, monkeypatch: pytest.MonkeyPatch, *resolved: str) -> webhooks.Sent:
    async def getaddrinfo(host: str, port: int, **_: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in resolved]

    settings = read({"MESH_WEBHOOK_SECRET": WEBHOOK_SECRET})
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    async with webhooks.Sender(settings) as sender:
        return await sender.send(url, "an-id", b"{}")


@pytest.mark.parametrize("resolved", [("127.0.0.1",), ("93.184.216.34", "10.0.0.1"), ("169.254.169.254",)])
def test_a_name_that_resolves_inwards_is_refused(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver, resolved: tuple[str, ...]
) -> None:
    port = receiver.url.rpartition(":")[2]
    sent = asyncio.run(_sent(f"http://innocent.example:{port}/inwards", monkeypatch, *resolved))
    assert (sent.delivered, sent.is_final) == (False, True)
    assert "not an address of the public internet" in (sent.error or "")
    assert receiver.of("/inwards").empty()


def test_excepted_hosts_and_networks_are_reached() -> None:
    exceptions = Exceptions.of("intranet.local, 10.1.0.0/16")
    addresses.check_url("http://intranet.local/hook", exceptions)
    addresses.check_url("http://10.1.2.3/hook", exceptions)
    with pytest.raises(RefusedError):
        addresses.check_url("http://10.2.2.3/hook", exceptions)


def test_the_pauses_grow_to_hours() -> None:
    pauses = [webhooks.pause_s(5, attempt) for attempt in range(1, 9)]
    assert pauses[:4] == [5, 20, 80, 320]
    assert max(pauses) == 4 * 3600
    assert webhooks.pause_s(5, 1, retry_after_s=120) == 120


def test_a_rotated_secret_signs_twice() -> None:
    both = webhooks.signatures(f"{WEBHOOK_SECRET} {WEBHOOK_SECRET}", "id", 1, b"body").split()
    assert len(both) == 2
    assert both[0] == both[1] == webhooks.signatures(WEBHOOK_SECRET, "id", 1, b"body")

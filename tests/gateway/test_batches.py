"""`/v1/batches` on the whole mesh: order, errors of one picture, idempotency, cancelation, and what is left behind."""

import contextlib
from typing import Any

import httpx
import pytest
import redis

from deploy.local.supervisor import LocalMesh
from tests.conftest import PHOTOS

PICTURES = {name: (PHOTOS / f"{name}.png").read_bytes() for name in ("chelsea", "coffee", "astronaut")}
LABELS = {"chelsea": "cat", "coffee": "cup", "astronaut": "person"}


def parts(*pictures: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("images", (f"{index}.png", picture, "image/png")) for index, picture in enumerate(pictures)]


def post(http: httpx.Client, *pictures: bytes, headers: dict[str, str] | None = None, **query: Any) -> httpx.Response:
    return http.post("/v1/batches", params=query, files=parts(*pictures), headers=headers or {})


def labels(batch: dict[str, Any]) -> list[str | None]:
    return [result["job"]["detections"][0]["label"] if result["job"] else None for result in batch["results"]]


def test_results_come_in_order(http: httpx.Client) -> None:
    answer = post(http, *PICTURES.values(), *PICTURES.values())
    assert answer.status_code == 202, answer.text
    batch = answer.json()
    assert (batch["total"], answer.headers["location"]) == (6, f"/v1/batches/{batch['id']}")
    done = http.get(answer.headers["location"], params={"wait": 20}).json()
    assert (done["status"], done["ended"], done["counts"]["succeeded"]) == ("finished", 6, 6)
    assert labels(done) == list(LABELS.values()) * 2
    assert [result["index"] for result in done["results"]] == list(range(6))
    progress = http.get(answer.headers["location"], params={"results": "false"}).json()
    assert progress["results"] is None
    assert progress["counts"] == done["counts"]


def test_a_bad_picture_fails_alone(http: httpx.Client) -> None:
    damaged = PICTURES["coffee"][:3000]
    pictures = [PICTURES["chelsea"], b"no picture", damaged, b"", PICTURES["coffee"], bytes(5 * 1024 * 1024)]
    answer = post(http, *pictures, headers={"prefer": "wait=20"})
    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=20")
    batch = answer.json()
    codes = [result["error"] and result["error"]["code"] for result in batch["results"]]
    assert codes == [None, "unsupported-media", "corrupt-image", "empty-body", None, "unsupported-media"]
    assert labels({"results": [batch["results"][0], batch["results"][4]]}) == ["cat", "cup"]
    assert batch["counts"] == {"succeeded": 2, "failed": 1, "canceled": 0, "expired": 0, "refused": 3}


def test_one_picture_may_be_too_large(http: httpx.Client) -> None:
    batch = post(http, PICTURES["coffee"] + bytes(4 * 1024 * 1024), PICTURES["chelsea"], headers={"prefer": "wait=20"}).json()
    assert batch["results"][0]["error"]["code"] == "too-large"
    assert batch["results"][1]["job"]["status"] == "succeeded"


def test_the_same_key_is_the_same_batch(http: httpx.Client) -> None:
    headers = {"idempotency-key": "a batch of two"}
    first = post(http, PICTURES["chelsea"], PICTURES["coffee"], headers=headers).json()
    assert post(http, PICTURES["chelsea"], PICTURES["coffee"], headers=headers).json()["id"] == first["id"]
    for changed in (
        post(http, PICTURES["coffee"], PICTURES["chelsea"], headers=headers),
        post(http, PICTURES["chelsea"], PICTURES["coffee"], headers=headers, confidence=0.9),
    ):
        assert (changed.status_code, changed.json()["code"]) == (422, "idempotency-mismatch")


def test_formats_reach_every_job(http: httpx.Client) -> None:
    answer = post(http, PICTURES["chelsea"], b"no picture", headers={"prefer": "wait=20"}, format="roboflow")
    first, second = answer.json()["results"]
    assert first["job"]["predictions"][0]["class"] == "cat"
    assert (second["job"], second["error"]["code"]) == (None, "unsupported-media")


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        (PICTURES["chelsea"], "image/png", 415, "unsupported-media"),
        (b"--b--\r\n", "multipart/form-data; boundary=b", 400, "malformed-multipart"),
        (
            b'--b\r\nContent-Disposition: form-data; name="images"\r\n\r\n' + PICTURES["chelsea"],
            "multipart/form-data; boundary=b",
            400,
            "malformed-multipart",
        ),
    ],
)
def test_what_is_no_batch_leaves_nothing(
    mesh: LocalMesh, http: httpx.Client, content: bytes, content_type: str, status: int, code: str
) -> None:
    with contextlib.closing(redis.Redis.from_url(mesh.redis_url)) as client:
        before = set(client.keys("*:batch:*"))
        answer = http.post("/v1/batches", content=content, headers={"content-type": content_type})
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert set(client.keys("*:batch:*")) == before


def test_a_canceled_batch_is_finished(http: httpx.Client) -> None:
    batch = post(http, *PICTURES.values()).json()
    canceled = http.delete(f"/v1/batches/{batch['id']}").json()
    assert canceled["status"] == "finished"
    assert canceled["counts"]["succeeded"] + canceled["counts"]["canceled"] == 3


def test_unknown_batches_are_problems(http: httpx.Client) -> None:
    assert http.get("/v1/batches/nosuchbatch").json()["code"] == "unknown-job"


def test_a_batch_is_no_job_and_a_job_no_batch_and_the_answer_says_which(http: httpx.Client) -> None:
    job_id = http.post("/v1/jobs", content=PICTURES["chelsea"], headers={"content-type": "image/png"}).json()["id"]
    batch_id = post(http, PICTURES["chelsea"]).json()["id"]
    asked = {
        f"/v1/jobs/{batch_id}": f"a batch: it is read at /v1/batches/{batch_id}",
        f"/v1/jobs/{batch_id}?wait=1": "a batch",
        f"/v1/jobs/{batch_id}/events": "a batch",
        f"/v1/jobs/{batch_id}/image": "a batch",
        f"/v1/batches/{job_id}": f"a job: it is read at /v1/jobs/{job_id}",
    }
    for path, said in asked.items():
        answer = http.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path
        assert answer.json()["code"] == "unknown-job"
        assert said in answer.json()["detail"]
    assert http.delete(f"/v1/jobs/{batch_id}").status_code == http.delete(f"/v1/batches/{job_id}").status_code == 404
    assert http.get(f"/v1/jobs/{job_id}").status_code == http.get(f"/v1/batches/{batch_id}").status_code == 200


def test_every_key_of_a_batch_has_an_end(mesh: LocalMesh, http: httpx.Client) -> None:
    batch = post(http, *PICTURES.values(), headers={"idempotency-key": "with an end", "prefer": "wait=20"}).json()
    with contextlib.closing(redis.Redis.from_url(mesh.redis_url)) as client:
        found = [key for key in client.keys("{mesh:*") if batch["id"].encode() in key or b":key:" in key]
        assert len(found) >= 2
        assert all(0 < client.ttl(key) <= 3600 + 120 for key in found)

"""A gateway whose Redis is full, away or coming back: rows 5 and 28 of the bad days."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis

from deploy.local import ports
from deploy.local.valkey import Valkey
from tests.conftest import PHOTOS, Background, _until
from tests.gateway.conftest import gateway_process

PHOTO = (PHOTOS / "chelsea.png").read_bytes()


@pytest.fixture(scope="module")
def own_valkey(background: Background, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("valkey"), ports.free())
    background.run(server.start())
    background.run(_until(server.ready))
    yield server
    background.run(server.stop(5))


@pytest.fixture(scope="module")
def http(background: Background, own_valkey: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder: Path = tmp_path_factory.mktemp("gateway")
    with (
        gateway_process(background, folder, own_valkey.url, {"MESH_UPLOAD_CHUNK_BYTES": "65536"}) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        assert submit(client).status_code == 202  # and has read how much memory Redis may take
        yield client


def submit(http: httpx.Client, body: bytes = PHOTO) -> httpx.Response:
    return http.post("/v1/jobs", content=body, headers={"content-type": "image/png"})


@pytest.mark.parametrize("body", [PHOTO, PHOTO[:30_000]], ids=["staged", "at once"])
def test_a_full_redis_is_503_and_nothing_is_half_accepted(http: httpx.Client, own_valkey: Valkey, body: bytes) -> None:
    with contextlib.closing(redis.Redis.from_url(own_valkey.url, decode_responses=True)) as client:
        before = set(client.scan_iter("*"))
        limit = client.config_get("maxmemory")["maxmemory"]
        client.config_set("maxmemory", client.info("memory")["used_memory"])
        try:
            answer = submit(http, body)
        finally:
            client.config_set("maxmemory", limit)
        assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        assert set(client.scan_iter("*")) == before
        assert submit(http, body).status_code == 202


def test_a_redis_that_comes_back_has_every_accepted_job(http: httpx.Client, own_valkey: Valkey, background: Background) -> None:
    job = submit(http).json()
    background.run(own_valkey.stop(5))
    answer = submit(http)
    assert (answer.status_code, answer.json()["code"]) == (503, "store-unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    ready = http.get("/readyz")
    assert (ready.status_code, ready.json()["checks"]["redis"]) == (503, False)
    assert http.get("/livez").status_code == 200
    background.run(own_valkey.start())
    background.run(_until(own_valkey.ready))

    async def submits_again() -> bool:
        return submit(http).status_code == 202

    background.run(_until(submits_again))
    assert http.get(f"/v1/jobs/{job['id']}").json()["status"] == "queued"

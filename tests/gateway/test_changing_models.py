"""A model changes while a picture for it is still coming: the job is of what is served when it is accepted."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import redis

from deploy.local.valkey import Valkey
from shared.live_file import FOLLOWED_S
from shared.store import keys
from tests.conftest import PHOTOS, Background
from tests.gateway.conftest import gateway_process

CAT = (PHOTOS / "chelsea.png").read_bytes()
ROW = 'triton_model = "t{0}"\ninput_width = 64\ninput_height = 64\nversion = {0}\nlabels = {1}\n'
SMALL = f"[models.small]\n{ROW.format(1, ['cat'])}"
ONE, TWO, OTHER = (f"[models.one]\n{ROW.format(version, labels)}" for version, labels in ((1, ["a"]), (2, ["a"]), (3, ["b"])))
BESIDE = f'[beside."one@1"]\n{ROW.format(1, ["a"])}'


class Gateway(NamedTuple):
    http: httpx.Client
    file: Path
    redis: redis.Redis

    def say(self, text: str) -> None:
        self.file.write_text(SMALL + text, "utf-8")
        time.sleep(FOLLOWED_S)

    def send(self, meanwhile: Callable[[], None]) -> httpx.Response:
        """Send a picture in two halves, and do something between them."""

        def body() -> Iterator[bytes]:
            yield CAT[:1000]
            time.sleep(0.1)  # the gateway has found its model by now
            meanwhile()
            yield CAT[1000:]

        return self.http.post("/v1/jobs?model=one", content=body(), headers={"content-type": "image/png"})

    def served_as(self, answer: httpx.Response) -> str:
        assert answer.status_code == 202, answer.text
        return self.redis.hget(keys.job(0, answer.json()["id"]), "served_as").decode()  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def running(background: Background, valkey: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("changing")
    (folder / "models.toml").write_text(SMALL + ONE, "utf-8")
    with (
        gateway_process(background, folder, valkey.url, {"MESH_MODELS": str(folder / "models.toml")}) as url,
        httpx.Client(base_url=url, timeout=20) as http,
        contextlib.closing(redis.Redis.from_url(valkey.url)) as client,
    ):
        yield Gateway(http, folder / "models.toml", client)


@pytest.fixture
def gateway(running: Gateway) -> Gateway:
    running.say(ONE)
    running.http.get("/v1/models")  # only who is asked looks
    return running


def test_it_is_of_the_version_that_is_served_when_it_is_accepted(gateway: Gateway) -> None:
    assert gateway.served_as(gateway.send(lambda: None)) == "one"
    assert gateway.served_as(gateway.send(lambda: gateway.say(TWO + BESIDE))) == "one"  # the old one still is
    gateway.say(ONE)
    assert gateway.served_as(gateway.send(lambda: gateway.say(TWO))) == "one@2"


def test_other_classes_than_it_was_asked_with_are_not_guessed_at(gateway: Gateway) -> None:
    answer = gateway.send(lambda: gateway.say(OTHER))
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "model-unavailable", "1")


def test_a_model_that_is_unloaded_or_removed_meanwhile_takes_no_job(gateway: Gateway) -> None:
    def unload() -> None:
        gateway.file.write_text('unloaded = ["one"]\n' + SMALL + ONE, "utf-8")
        time.sleep(FOLLOWED_S)

    assert gateway.send(unload).json()["code"] == "model-unavailable"
    gateway.say(ONE)
    assert gateway.send(lambda: gateway.say("")).json()["code"] == "unknown-model"


def test_a_broken_file_changes_nothing_and_health_says_so(gateway: Gateway) -> None:
    gateway.say("this is [no TOML")
    told = gateway.http.get("/health").json()
    assert told["status"] == "degraded"
    assert "models.toml" in told["registry_problem"]
    assert gateway.served_as(gateway.send(lambda: None)) == "one"
    gateway.say(ONE)
    assert gateway.http.get("/health").json()["registry_problem"] is None

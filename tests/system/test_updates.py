"""A model is replaced by a new version of it under load: no request fails, and a bad version changes nothing."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.local.supervisor import LocalMesh
from shared import models
from tests.deploy.export.detectors import LABELS, save
from tests.system.test_models import command, png
from tests.system.test_rolling import Load

NEW_LABELS = ["rot", "gruen"]


class Asking(Load):
    """Clients that ask the model, and what they were told is on the picture."""

    def __init__(self, url: str) -> None:
        super().__init__(url, sends_again=False)
        self.labels: list[str] = []

    def _post(self, headers: dict[str, str]) -> dict[str, Any]:
        job = httpx.post(f"{self._url}/v1/jobs?model=renewed", content=png(), headers=headers, timeout=30).json()
        self.labels += [found["label"] for found in job["detections"]]
        return job


@pytest.fixture(scope="module")
def renewed(mesh: LocalMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("renewed")
    added = command("add", str(save(folder, "yolov8")), "--name", "renewed", "--confidence", "0.3", url=mesh.url)
    assert added.returncode == 0, added.stderr + added.stdout
    yield "renewed"
    command("remove", "renewed", url=mesh.url)


def files(registry: Path) -> set[str]:
    places = [*(registry.parent / "repository").iterdir(), *(registry.parent / "sources").iterdir()]
    return {place.name for place in places if place.name.startswith("renewed")}


def test_a_bad_new_version_changes_nothing(renewed: str, mesh: LocalMesh, tmp_path: Path) -> None:
    file = models.user_file()
    assert file
    before, there = file.read_text("utf-8"), files(file)
    good = save(tmp_path, "yolov8", labels=NEW_LABELS)
    (tmp_path / "broken.onnx").write_bytes(good.read_bytes()[:500])
    elsewhere = ("--repository", str(tmp_path / "elsewhere"), "--within", "1")  # a folder of which Triton knows nothing
    for arguments, code, said in (
        ([str(tmp_path / "broken.onnx")], 2, "broken.onnx"),
        ([str(good), *elsewhere], 1, "has not loaded renewed@2 within 1 s"),
    ):
        done = command("update", renewed, *arguments, url=mesh.url)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
        assert said in done.stderr
        assert tomllib.loads(file.read_text("utf-8")) == tomllib.loads(before)
        assert files(file) == there
    assert httpx.get(f"{mesh.url}/v1/models/{renewed}").json()["version"] == 1


def test_a_new_version_under_load_fails_no_request(renewed: str, mesh: LocalMesh, tmp_path: Path) -> None:
    file = models.user_file()
    assert file
    with Asking(mesh.url) as load:
        load.more(2)
        done = command("update", renewed, str(save(tmp_path, "yolov5", labels=NEW_LABELS)), url=mesh.url)
        assert done.returncode == 0, done.stdout + done.stderr
        switched = len(load.labels)
        load.more(6)
    assert set(load.answers) == {"succeeded"}, load.answers
    assert set(load.labels[:2]) == set(LABELS)
    assert set(load.labels[switched + 4 :]) == set(NEW_LABELS)
    described = httpx.get(f"{mesh.url}/v1/models/{renewed}").json()
    assert (described["version"], described["ready"], described["labels"]) == (2, True, NEW_LABELS)
    assert described["confidence"] == 0.3
    registry = models.load(file)
    assert (set(registry.beside), registry.get("renewed_end2end").version) == (set(), 2)
    assert files(file) == {"renewed@2", "renewed_end2end@2", "renewed@2.onnx"}
    assert httpx.get(f"{mesh.url}/v1/models/{renewed}@1").status_code == 404
    assert command("verify", "renewed_end2end", "--json", url=mesh.url).returncode == 0

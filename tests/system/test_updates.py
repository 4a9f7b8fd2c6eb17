"""A model is replaced by a new version of it under load: no request fails, and a bad version changes nothing."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deploy.local.supervisor import LocalMesh
from shared import models
from tests.deploy.export.detectors import LABELS, save
from tests.system.load import Load
from tests.system.test_models import command, png

NEW_LABELS = ["rot", "gruen"]


@pytest.fixture(scope="module")
def renewed(mesh: LocalMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("renewed")
    added = command("add", str(save(folder, "yolov8")), "--name", "renewed", "--confidence", "0.3", url=mesh.url)
    assert added.code == 0, added.err + added.out
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
        assert (done.code, done.err.count("\n")) == (code, 1), done.err
        assert said in done.err
        assert tomllib.loads(file.read_text("utf-8")) == tomllib.loads(before)
        assert files(file) == there
    assert httpx.get(f"{mesh.url}/v1/models/{renewed}").json()["version"] == 1


def test_a_new_version_under_load_fails_no_request(renewed: str, mesh: LocalMesh, tmp_path: Path) -> None:
    file = models.user_file()
    assert file
    with Load(mesh.url, picture=png(), query={"model": renewed}) as load:
        load.more(2)
        done = command("update", renewed, str(save(tmp_path, "yolov5", labels=NEW_LABELS)), url=mesh.url)
        assert done.code == 0, done.out + done.err
        switched = len(load.jobs)
        load.more(6)
    labels = [{found["label"] for found in job["detections"]} for job in load.jobs]
    assert labels[0] == set(LABELS)
    under_way = 2
    assert all(of_one == set(NEW_LABELS) for of_one in labels[switched + under_way :])
    described = httpx.get(f"{mesh.url}/v1/models/{renewed}").json()
    assert (described["version"], described["ready"], described["labels"]) == (2, True, NEW_LABELS)
    assert described["confidence"] == 0.3
    registry = models.load(file)
    assert (set(registry.beside), registry.get("renewed_end2end").version) == (set(), 2)
    assert files(file) == {"renewed@2", "renewed_end2end@2", "renewed@2.onnx"}
    assert httpx.get(f"{mesh.url}/v1/models/{renewed}@1").status_code == 404
    assert command("verify", "renewed_end2end", "--json", url=mesh.url).code == 0

"""A new version put beside the old one, in files: each step, and back."""

import tomllib
from pathlib import Path

import msgspec
import pytest

from deploy.export import adding, updating
from deploy.export.adding import Wish
from deploy.export.detector import ExportError
from shared import models
from shared.models import RegistryError
from tests.deploy.export.detectors import save


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_dir() or path.suffix == ".onnx"}


@pytest.fixture
def wish(tmp_path: Path) -> Wish:
    """A model that has been added, and the wish for its new version. No photos: that parity is looked at is shown elsewhere."""
    (tmp_path / "exports").mkdir()
    onnx = save(tmp_path / "exports", "yolov8")
    mesh = tmp_path / "mesh"
    wish = Wish(name="one", onnx=onnx, registry=mesh / "models.toml", repository=mesh / "repository", confidence=0.3)
    adding.add(wish, {})
    return msgspec.structs.replace(wish, onnx=save(tmp_path / "exports", "yolov5", labels=["rot", "gruen"]))


def test_prepared_and_undone_nothing_has_changed(wish: Wish) -> None:
    before, there = tomllib.loads(wish.registry.read_text("utf-8")), files(wish.registry.parent)
    update = updating.prepare(wish, {})
    assert set(update.new) == {"one@2", "one_end2end@2"}
    assert set(models.load(wish.registry).beside) == set(update.new)
    assert {"repository/one@2/1/model.onnx", "repository/one_end2end@2/1/model.onnx", "sources/one@2.onnx"} <= files(
        wish.registry.parent
    )
    with pytest.raises(RegistryError, match="models tidy one"):
        updating.prepare(wish, {})
    update.undo()
    assert tomllib.loads(wish.registry.read_text("utf-8")) == before
    assert files(wish.registry.parent) == there


def test_switched_and_finished_only_the_new_one_is_there(wish: Wish) -> None:
    text = wish.registry.read_text("utf-8")
    wish.registry.write_text("# mine\n" + text, "utf-8")
    for version in (2, 3):
        update = updating.prepare(wish, {})
        update.switch()
        assert models.load(wish.registry).get("one").version == version
        update.finish()
        registry = models.load(wish.registry)
        assert (registry.beside, registry.get("one_trt").labels, registry.get("one").confidence) == ({}, ["rot", "gruen"], 0.3)
        assert {path for path in files(wish.registry.parent) if path.startswith("repository/") and path.count("/") == 1} == {
            f"repository/one@{version}", f"repository/one_end2end@{version}",
        }  # fmt: skip
        assert [path.name for path in (wish.registry.parent / "sources").iterdir()] == [f"one@{version}.onnx"]
    assert wish.registry.read_text("utf-8").startswith("# mine")
    assert adding.remove(wish.registry, wish.repository, "one") == ["one", "one_end2end"]
    assert tomllib.loads(wish.registry.read_text("utf-8"))["labels"] == {}
    assert not [path for path in files(wish.registry.parent) if "one" in path]


def test_what_was_broken_off_is_tidied(wish: Wish) -> None:
    updating.prepare(wish, {}).switch()  # and nobody finishes it
    assert updating.tidy(wish.registry, wish.repository, "one") == ["one@1", "one_end2end@1"]
    assert models.load(wish.registry).beside == {}
    assert updating.tidy(wish.registry, wish.repository, "one") == []


def test_what_cannot_be_updated_is_refused_and_leaves_nothing(wish: Wish, tmp_path: Path) -> None:
    before = files(wish.registry.parent)
    with pytest.raises(ExportError, match="makes one_end2end, but what is served is one, one_end2end"):
        updating.prepare(msgspec.structs.replace(wish, onnx=save(tmp_path, "nms-free")), {})
    with pytest.raises(RegistryError, match="has no model 'two'"):
        updating.prepare(msgspec.structs.replace(wish, name="two"), {})
    (wish.repository / "one_gpu_e2e").mkdir()
    with pytest.raises(ExportError, match="track D"):
        updating.prepare(wish, {})
    (wish.repository / "one_gpu_e2e").rmdir()
    assert files(wish.registry.parent) == before

"""A registry file that changes while a service follows it."""

from pathlib import Path

import pytest

from deploy.export.registry_file import RegistryFile
from deploy.export.repository import Served
from shared import models
from shared.errors import UnknownModel
from shared.live_registry import LiveRegistry
from shared.models import RegistryError
from tests.deploy.export.detectors import save


def add(file: Path, name: str) -> None:
    from deploy.export.detector import load

    folder = file.parent / "onnx"
    folder.mkdir(exist_ok=True)
    served = [Served(name, "B", "yolo", 8), Served(f"{name}_end2end", "C", "end2end", 8)]
    registry = RegistryFile(file)
    registry.add(name, load(save(folder, "yolov8")), served, family="yolo", confidence=0.3)
    registry.save()


def test_what_is_added_is_there_at_once(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    add(file, "one")
    live = LiveRegistry(str(file), "small")
    assert {"small", "small_end2end", "one", "one_end2end"} == set(live.now.models)
    assert (live.get("one_trt_end2end").track, live.get("one").confidence) == ("C", 0.3)
    add(file, "two")
    assert live.get("two").labels == ["red", "green"]


def test_a_broken_file_changes_nothing_and_is_told(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    add(file, "one")
    live = LiveRegistry(str(file))
    good = file.read_text("utf-8")
    file.write_text("this is [no TOML", "utf-8")
    live.refresh()
    assert "one" in live.now.models
    assert "models.toml" in live.problem
    file.write_text(good, "utf-8")
    live.refresh()
    assert live.problem == ""


def test_what_a_person_wrote_stays(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    add(file, "one")
    file.write_text("# mine\n" + file.read_text("utf-8").replace("confidence = 0.3", "confidence = 0.7  # surer"), "utf-8")
    add(file, "two")
    text = file.read_text("utf-8")
    assert text.startswith("# mine")
    assert "confidence = 0.7  # surer" in text
    registry = RegistryFile(file)
    registry.remove(["two", "two_end2end"])
    registry.save()
    assert models.load(file).models["one"].confidence == 0.7
    assert "two_trt" not in models.load(file).aliases


def test_unloaded_and_loaded_again(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    add(file, "one")
    for loaded in (False, False, True):
        registry = RegistryFile(file)
        registry.keep("one", loaded=loaded)
        registry.keep("small", loaded=loaded)
        registry.save()
        assert models.load(file).unloaded == (frozenset() if loaded else {"one", "small"})
        assert set(models.load(file).models) >= {"one", "small"}


def test_a_detector_without_a_plain_variant_has_its_name_as_well(tmp_path: Path) -> None:
    from deploy.export.detector import load

    registry = RegistryFile(tmp_path / "models.toml")
    registry.add(
        "free", load(save(tmp_path, "nms-free")), [Served("free_end2end", "C", "end2end", 8)], family="y", confidence=None
    )
    registry.save()
    assert models.load(tmp_path / "models.toml").get("free").name == "free_end2end"


def test_the_default_model_must_be_there(tmp_path: Path) -> None:
    add(tmp_path / "models.toml", "one")
    with pytest.raises(UnknownModel):
        LiveRegistry(str(tmp_path / "models.toml"), "none")
    (tmp_path / "empty.toml").write_text("", "utf-8")
    with pytest.raises(RegistryError, match="names no model"):
        LiveRegistry(str(tmp_path / "empty.toml"))


def test_a_second_version_is_beside_then_switched_to_then_alone(tmp_path: Path) -> None:
    from deploy.export.detector import load

    file = tmp_path / "models.toml"
    add(file, "one")
    live = LiveRegistry(str(file))
    old = live.get("one")
    registry = RegistryFile(file)
    registry.add_beside(
        "one@2",
        load(save(tmp_path, "yolov8", labels=["rot", "gruen"])),
        {"one@2": Served("one@2", "B", "yolo", 4)},
        {"one@2": old},
    )
    registry.save()
    live.refresh()
    new = live.get("one@2")
    assert (live.get("one"), new.labels, new.confidence, new.served_as) == (old, ["rot", "gruen"], 0.3, "one@2")
    registry.switch(["one@2"], {"one@2": old})
    registry.save()
    live.refresh()
    # The same rows in other places: their loops go on.
    assert (live.get("one"), live.get("one@1"), live.of_job("one", "one")) == (new, old, old)
    registry.drop_beside(["one@1"])
    registry.save()
    live.refresh()
    assert set(live.now.served) == {"small", "small_end2end", "one@2", "one_end2end"}
    assert live.of_job("one", "one") == old  # a job of a moment ago still is what it was
    assert live.of_job("one", "one@7") == new  # one that nobody remembers is done by what there is
    assert "one_trt" in live.now.aliases


def test_a_built_in_model_gets_a_second_version(tmp_path: Path) -> None:
    from deploy.export.detector import load

    file = tmp_path / "models.toml"
    built_in = models.load().get("small")
    registry = RegistryFile(file)
    registry.add_beside(
        "small@2", load(save(tmp_path, "yolov8")), {"small@2": Served("small@2", "B", "yolo", 4)}, {"small@2": built_in}
    )
    registry.switch(["small@2"], {"small@2": built_in})
    registry.save()
    assert models.load(file).get("small@1") == built_in
    assert models.load(file).get("small").labels == ["red", "green"]
    registry.remove(["small"])
    registry.save()
    assert models.load(file).get("small") == built_in


@pytest.mark.parametrize("key", ["one", "one@1", "one@x", "two@2"])
def test_what_is_no_version_of_a_model_is_refused(tmp_path: Path, key: str) -> None:
    file = tmp_path / "models.toml"
    add(file, "one")
    row = 'triton_model = "x"\ninput_width = 64\ninput_height = 64\n'
    file.write_text(file.read_text("utf-8") + f'\n[beside."{key}"]\n{row}', "utf-8")
    with pytest.raises(RegistryError, match="is no NAME@VERSION"):
        models.load(file)

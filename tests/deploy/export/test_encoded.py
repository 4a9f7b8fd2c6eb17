"""Track D's configurations, for here and for a GPU machine, parsed with Triton's own schema and followed along the ensemble."""

import os
import subprocess
import tomllib
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from deploy.export import encoded, repository, tracks
from deploy.export.configuration import TARGETS, Target
from deploy.export.detector import load
from inference_worker.signature import ENCODED_INPUTS
from shared import models

MAX_BATCH = 8


def config(folder: Path, name: str) -> ModelConfig:
    parsed = text_format.Parse((folder / name / "config.pbtxt").read_text("utf-8"), ModelConfig())
    assert parsed.name == name
    return parsed


def tensors(values) -> dict[str, tuple[int, list[int]]]:
    return {value.name: (value.data_type, list(value.dims)) for value in values}


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return request.param


@pytest.fixture
def written(tmp_path: Path, target: Target) -> list[encoded.Ensemble]:
    detector = load(repository.DEFAULT_ONNX)
    repository.write(tmp_path, detector, "small", target=target, max_batch=MAX_BATCH)
    return encoded.write(tmp_path, detector, "small", target=target, max_batch=MAX_BATCH)


def test_tensors_fit_along_the_ensemble(tmp_path: Path, target: Target, written: list[encoded.Ensemble]) -> None:
    end2end = config(tmp_path, "small_end2end")
    for each in written:
        ensemble = config(tmp_path, each.triton_model)
        assert ensemble.platform == "ensemble"
        assert set(tensors(ensemble.input)) == ENCODED_INPUTS
        first, second = ensemble.ensemble_scheduling.step
        preprocess = config(tmp_path, first.model_name)
        assert preprocess.backend == ("python" if target == "cpu" else "dali")
        assert second.model_name == "small_end2end"
        assert ensemble.max_batch_size == preprocess.max_batch_size == each.max_batch <= end2end.max_batch_size
        # What goes in is what the first step takes, what lies between is the same on both sides, what comes out is C's.
        assert tensors(ensemble.input) == tensors(preprocess.input)
        assert dict(first.input_map) == {name: name for name in ENCODED_INPUTS}
        assert dict(first.output_map)["images"] == dict(second.input_map)["images"]
        assert tensors(preprocess.output)["images"] == tensors(end2end.input)["images"]
        assert dict(second.output_map) == {name: name for name in tensors(end2end.output)}
        assert tensors(ensemble.output) == tensors(end2end.output)


def test_tiers_differ_in_batch_and_delay(tmp_path: Path, written: list[encoded.Ensemble]) -> None:
    kinds = [(each.max_batch, config(tmp_path, f"{each.triton_model}_preprocess").dynamic_batching) for each in written]
    assert [(most, batching.max_queue_delay_microseconds) for most, batching in kinds] == [(2, 0), (4, 500), (8, 5000)]
    assert all(batching.default_queue_policy.max_queue_size for _, batching in kinds)


def test_what_a_gpu_machine_builds(tmp_path: Path, target: Target, written: list[encoded.Ensemble]) -> None:
    script = tmp_path / "build-dali.sh"
    if target == "cpu":
        assert not script.exists()
        return
    assert os.access(script, os.X_OK)
    subprocess.run(["sh", "-n", str(script)], check=True)
    compile((tmp_path / "letterbox.py").read_text("utf-8"), "letterbox.py", "exec")
    for each in written:
        line = f'letterbox.py" "$here/{each.triton_model}_preprocess/1/model.dali" 300 300 {each.max_batch}\n'
        assert line in script.read_text("utf-8")
        assert (tmp_path / f"{each.triton_model}_preprocess" / "1").is_dir()


def test_the_registry_names_what_the_repository_holds(tmp_path: Path) -> None:
    written = tracks.write(tmp_path, torch_file="")
    registry = models.load(written.registry)
    assert {model.track for model in registry.models.values()} == {"B", "C", "D"}
    for model in registry.models.values():
        served = config(written.repository, model.triton_model)
        assert model.max_batch == served.max_batch_size
        assert ("num_dets" in tensors(served.output)) == (model.head == "end2end")
    assert "small_gpu_e2e" in tomllib.loads(written.registry.read_text("utf-8"))["models"]

"""Tracks B and C: what is written for each place, read with Triton's own schema and held against graph, registry and heads."""

import os
import subprocess
from pathlib import Path

import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig

from deploy.export import configuration, graph, repository
from deploy.export.configuration import TARGETS, Target
from deploy.export.detector import load
from inference_worker.heads import HEADS
from shared import models
from tests.deploy.export.detectors import save

TYPES = {
    onnx.TensorProto.UINT8: model_config_pb2.TYPE_UINT8,
    onnx.TensorProto.FLOAT: model_config_pb2.TYPE_FP32,
    onnx.TensorProto.INT32: model_config_pb2.TYPE_INT32,
}


def config(folder: Path, name: str) -> ModelConfig:
    return text_format.Parse((folder / name / "config.pbtxt").read_text("utf-8"), ModelConfig())


def of_graph(values) -> dict[str, tuple[int, list[int]]]:
    return {
        value.name: (
            TYPES[value.type.tensor_type.elem_type],
            [dimension.dim_value or -1 for dimension in value.type.tensor_type.shape.dim][1:],
        )
        for value in values
    }


def of_config(values) -> dict[str, tuple[int, list[int]]]:
    return {value.name: (value.data_type, list(value.dims)) for value in values}


@pytest.mark.parametrize("target", TARGETS)
def test_says_what_the_graph_says(tmp_path: Path, target: Target) -> None:
    detector = load(repository.DEFAULT_ONNX)
    graphs = {"small": graph.plain(detector), "small_end2end": graph.end2end(detector)}
    for served in repository.write(tmp_path, detector, "small", target=target):
        parsed = config(tmp_path, served.triton_model)
        made = graphs[served.triton_model].graph
        assert parsed.name == served.triton_model
        assert (parsed.backend, parsed.platform) == {
            "cpu": ("python", ""),
            "onnxruntime": ("", "onnxruntime_onnx"),
            "tensorrt": ("", "tensorrt_plan"),
        }[target]
        assert of_config(parsed.input) == of_graph(made.input)
        assert of_config(parsed.output) == of_graph(made.output)
        assert parsed.max_batch_size == served.max_batch
        assert all(size <= served.max_batch for size in parsed.dynamic_batching.preferred_batch_size)
        policy = parsed.dynamic_batching.default_queue_policy
        assert (policy.default_timeout_microseconds, policy.max_queue_size) == (configuration.QUEUE_TIMEOUT_US, 256)
        assert [group.count for group in parsed.instance_group]
        assert bool(parsed.model_warmup) == (target != "cpu")
        for warmup in parsed.model_warmup:
            assert {name: list(value.dims) for name, value in warmup.inputs.items()} == {"images": [300, 300, 3]}


def test_the_registry_names_what_the_repository_holds(tmp_path: Path) -> None:
    written = {served.triton_model: served for served in repository.write(tmp_path, load(repository.DEFAULT_ONNX), "small")}
    registry = models.load(models.DEFAULT_FILE)
    assert {model.triton_model for model in registry.models.values()} == set(written)
    for model in registry.models.values():
        parsed, served = config(tmp_path, model.triton_model), written[model.triton_model]
        assert (model.track, model.head, model.max_batch) == (served.track, served.head, parsed.max_batch_size)
        assert list(parsed.input[0].dims) == [model.input_height, model.input_width, 3]
        assert model.head in HEADS
        if model.head == "yolo":
            assert parsed.output[0].dims[0] == 4 + len(model.labels)


def test_plans_are_built_by_one_script_for_all_that_was_added(tmp_path: Path) -> None:
    for name, layout in (("one", "yolov8"), ("two", "nms-free")):
        repository.write(tmp_path, load(save(tmp_path, layout)), name, target="tensorrt", max_batch=4)
    script = tmp_path / "build-plans.sh"
    assert os.access(script, os.X_OK)
    bin_folder, told = tmp_path / "bin", tmp_path / "told"
    bin_folder.mkdir()
    # Not TensorRT's, which needs a GPU: it notes what it is asked for.
    (bin_folder / "trtexec").write_text(f'#!/bin/sh\necho "$@" >> "{told}"\n')
    (bin_folder / "trtexec").chmod(0o755)
    subprocess.run(["sh", str(script)], check=True, env={"PATH": f"{bin_folder}:{os.environ['PATH']}"})
    lines = told.read_text("utf-8").splitlines()
    assert [line.split("/")[-1].split(" ")[0] for line in lines] == ["model.plan"] * 3
    for name, line in zip(("one", "one_end2end", "two_end2end"), lines, strict=True):
        assert f"--onnx={tmp_path}/build/{name}.onnx --saveEngine={tmp_path}/{name}/1/model.plan" in line
        assert "--maxShapes=images:4x64x64x3" in line
        assert (tmp_path / "build" / f"{name}.onnx").is_file()
        assert (tmp_path / name / "1").is_dir()

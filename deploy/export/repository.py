"""Writes what Triton serves: a folder per model, with its configuration, its graph, and what runs it.

target cpu                   target onnxruntime           target tensorrt
NAME/config.pbtxt            NAME/config.pbtxt            NAME/config.pbtxt
NAME/1/model.onnx            NAME/1/model.onnx            NAME/1/             model.plan comes here
NAME/1/model.py                                           build/NAME.onnx, build-plans.sh
"""

import shutil
from pathlib import Path

import msgspec
import onnx

from deploy.export import configuration, graph
from deploy.export.configuration import Target
from deploy.export.detector import Detector, load
from deploy.export.errors import ExportError

_MODEL_PY = Path(__file__).parents[1] / "triton" / "model.py"
DEFAULT_ONNX = Path(__file__).parents[1] / "models" / "ssdlite_mobilenet_v2_coco_300.onnx"
DEFAULT_MAX_BATCH = 8


class Served(msgspec.Struct, frozen=True):
    """A model that was written: its name in Triton, its track and the head that reads it."""

    triton_model: str
    track: str
    head: str
    max_batch: int


def write_default(repository: Path) -> list[str]:
    """Write the built-in detector for the embedded Triton; returns the names in Triton: `small`, `small_end2end`."""
    return [served.triton_model for served in write(repository, load(DEFAULT_ONNX), "small")]


def write(
    repository: Path,
    detector: Detector,
    name: str,
    *,
    target: Target = "cpu",
    max_batch: int = DEFAULT_MAX_BATCH,
    version: int = 1,
) -> list[Served]:
    """Write the variants of a detector: NAME (track B; not where the detector has no plain output) and NAME_end2end (C); a
    later version of them as NAME@VERSION and NAME_end2end@VERSION.

    Raises:
        ExportError: the folder cannot be written.
    """
    largest = detector.batch or max_batch
    nms: graph.Nms = "tensorrt" if target == "tensorrt" else "onnx"
    ending = "" if version == 1 else f"@{version}"
    variants = [] if detector.layout == "nms-free" else [(name + ending, "B", "yolo", graph.plain(detector))]
    variants.append((f"{name}_end2end{ending}", "C", "end2end", graph.end2end(detector, nms)))
    try:
        for triton_model, _, _, model in variants:
            _write_model(repository, triton_model, model, target, largest)
        if target == "tensorrt":
            _write_script(repository, detector, [variant[0] for variant in variants], largest)
    except OSError as error:
        raise ExportError(f"{repository}: cannot be written ({error.strerror})") from None
    return [Served(triton_model, track, head, largest) for triton_model, track, head, _ in variants]


def _write_model(repository: Path, name: str, model: onnx.ModelProto, target: Target, max_batch: int) -> None:
    version = repository / name / "1"
    version.mkdir(parents=True, exist_ok=True)
    if target == "tensorrt":
        (repository / "build").mkdir(exist_ok=True)
        onnx.save(model, repository / "build" / f"{name}.onnx")
    else:
        onnx.save(model, version / "model.onnx")
    if target == "cpu":
        shutil.copyfile(_MODEL_PY, version / "model.py")
    (repository / name / "config.pbtxt").write_text(configuration.text(name, model.graph, target, max_batch), "utf-8")


def _write_script(repository: Path, detector: Detector, names: list[str], max_batch: int) -> None:
    image = f"{detector.input_height}x{detector.input_width}x3"
    best = max(max_batch // 2, 1)
    shapes = f" --minShapes=images:1x{image} --optShapes=images:{best}x{image} --maxShapes=images:{max_batch}x{image}"
    shapes = "" if detector.batch else shapes
    builds = "\n".join(
        f'trtexec --onnx="$here/build/{name}.onnx" --saveEngine="$here/{name}/1/model.plan" --fp16{shapes}' for name in names
    )
    # One part for each detector: the script itself stays the same, whatever else is added.
    (repository / "build" / f"{names[-1]}.sh").write_text(builds + "\n", "utf-8")
    script = repository / "build-plans.sh"
    script.write_text(
        """#!/bin/sh
# Build the TensorRT plans on the GPU that will run them, in NVIDIA's container of the same release as the server:
#   docker run --rm --gpus all -v "$PWD:/models" nvcr.io/nvidia/tritonserver:26.07-py3 sh /models/build-plans.sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
PATH="$PATH:/usr/src/tensorrt/bin"
for part in "$here"/build/*.sh; do
    . "$part"
done
""",
        "utf-8",
    )
    script.chmod(0o755)

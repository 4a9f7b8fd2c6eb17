"""Track D in Triton: for each tier a model `NAME_TIER_preprocess`, which decodes and warps, and an ensemble with C's model.

    encoded, length, affine ──▶ NAME_gpu_e2e_preprocess ──images──▶ NAME_end2end ──▶ the four outputs

tier        share of the end2end model's batch   delay     for
streaming   a quarter                            none      the shortest way of a single picture
balanced    a half                               0.5 ms    most
batch       all                                  5 ms      the most pictures per second

target cpu        the Python backend with DALI's CPU operators (deploy/triton/dali/model.py)
other targets     the DALI backend; build-dali.sh serializes the pipelines on the GPU machine
"""

import shutil
from pathlib import Path

import msgspec

from deploy.export import configuration
from deploy.export.configuration import Target
from deploy.export.detector import Detector
from deploy.export.errors import ExportError

_SOURCES = Path(__file__).parents[1] / "triton" / "dali"


class Tier(msgspec.Struct, frozen=True):
    """A compromise between waiting and filling: its name behind `gpu_e2e`, its part of the largest batch, its delay."""

    suffix: str
    divisor: int
    delay_us: int


TIERS = (Tier("_streaming", 4, 0), Tier("", 2, 500), Tier("_batch", 1, 5_000))

_INPUTS = (("encoded", "TYPE_UINT8", [-1]), ("length", "TYPE_INT32", [1]), ("affine", "TYPE_FP32", [2, 3]))
_OUTPUTS = (
    ("num_dets", "TYPE_INT32", [1]),
    ("det_boxes", "TYPE_FP32", [-1, 4]),
    ("det_scores", "TYPE_FP32", [-1]),
    ("det_classes", "TYPE_INT32", [-1]),
)


class Ensemble(msgspec.Struct, frozen=True):
    """A tier that was written: its ensemble's name in Triton and its largest batch."""

    triton_model: str
    max_batch: int


def write(repository: Path, detector: Detector, name: str, *, target: Target = "cpu", max_batch: int) -> list[Ensemble]:
    """Write the three tiers of track D beside the model NAME_end2end, whose largest batch is `max_batch`.

    Raises:
        ExportError: the folder cannot be written.
    """
    written: list[Ensemble] = []
    builds: list[str] = []
    width, height = detector.input_width, detector.input_height
    try:
        for tier in TIERS:
            ensemble, most = f"{name}_gpu_e2e{tier.suffix}", max(max_batch // tier.divisor, 1)
            preprocess = f"{ensemble}_preprocess"
            version = repository / preprocess / "1"
            version.mkdir(parents=True, exist_ok=True)
            (repository / ensemble / "1").mkdir(parents=True, exist_ok=True)  # Triton wants it, though nothing is in it
            if target == "cpu":
                for source in ("model.py", "letterbox.py"):
                    shutil.copyfile(_SOURCES / source, version / source)
            else:
                builds.append(f'python3 "$here/letterbox.py" "$here/{preprocess}/1/model.dali" {width} {height} {most}')
            text = _preprocess_text(preprocess, width, height, target, most, tier.delay_us)
            (repository / preprocess / "config.pbtxt").write_text(text, "utf-8")
            (repository / ensemble / "config.pbtxt").write_text(_ensemble_text(ensemble, preprocess, name, most), "utf-8")
            written.append(Ensemble(ensemble, most))
        if builds:
            _write_script(repository, builds)
    except OSError as error:
        raise ExportError(f"{repository}: cannot be written ({error.strerror})") from None
    return written


def _preprocess_text(name: str, width: int, height: int, target: Target, max_batch: int, delay_us: int) -> str:
    on_cpu = target == "cpu"
    inputs = _tensors(_INPUTS)
    if on_cpu:
        # Requests of several workers are padded to different lengths. model.py takes them as they come; the DALI backend wants
        # one shape, so there only requests of one length are merged, and the worker's own batches are what counts.
        inputs = inputs.replace("dims: [-1] }", "dims: [-1] allow_ragged_batch: true }")
    return f"""name: "{name}"
backend: "{"python" if on_cpu else "dali"}"
max_batch_size: {max_batch}
input [
{inputs}
]
output [
{_tensors((("images", "TYPE_UINT8", [height, width, 3]),))}
]
# DALI spreads a batch over its own threads, and a second instance would take the memory twice.
instance_group [ {{ count: 1 kind: {"KIND_CPU" if on_cpu else "KIND_GPU"} }} ]
{configuration.batching(delay_us, [])}
"""


def _ensemble_text(name: str, preprocess: str, detector: str, max_batch: int) -> str:
    return f"""name: "{name}"
platform: "ensemble"
max_batch_size: {max_batch}
input [
{_tensors(_INPUTS)}
]
output [
{_tensors(_OUTPUTS)}
]
ensemble_scheduling {{
  step [
    {{
      model_name: "{preprocess}" model_version: -1
{_map("input_map", [name for name, _, _ in _INPUTS])}
      output_map {{ key: "images" value: "letterboxed" }}
    }},
    {{
      model_name: "{detector}_end2end" model_version: -1
      input_map {{ key: "images" value: "letterboxed" }}
{_map("output_map", [name for name, _, _ in _OUTPUTS])}
    }}
  ]
}}
"""


def _map(kind: str, names: list[str]) -> str:
    return "\n".join(f'      {kind} {{ key: "{name}" value: "{name}" }}' for name in names)


def _tensors(tensors: tuple[tuple[str, str, list[int]], ...]) -> str:
    return ",\n".join(f'  {{ name: "{name}" data_type: {kind} dims: {dims} }}' for name, kind, dims in tensors)


def _write_script(repository: Path, builds: list[str]) -> None:
    shutil.copyfile(_SOURCES / "letterbox.py", repository / "letterbox.py")
    script = repository / "build-dali.sh"
    lines = "\n".join(builds)
    script.write_text(
        f"""#!/bin/sh
# Serialize the DALI pipelines on the GPU machine, with the DALI release of the server that will run them:
#   docker run --rm --gpus all -v "$PWD:/models" nvcr.io/nvidia/tritonserver:26.07-py3 sh /models/build-dali.sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
# The server's image brings its DALI along with the backend, outside of Python's own path.
export PYTHONPATH="/opt/tritonserver/backends/dali/wheel/dali:${{PYTHONPATH:-}}"
python3 -c 'import nvidia.dali' || {{ echo "nvidia-dali is missing: pip install nvidia-dali-cuda120" >&2; exit 1; }}
{lines}
""",
        "utf-8",
    )
    script.chmod(0o755)

"""Writes the model repository that the embedded Triton serves: a folder per model with its configuration, graph and code.

REPOSITORY/small/config.pbtxt
REPOSITORY/small/1/model.py      (deploy/triton/model.py: runs the graph with ONNX Runtime)
REPOSITORY/small/1/model.onnx
"""

import shutil
from pathlib import Path

import onnx

from deploy.export import graph

_MODEL_PY = Path(__file__).parents[1] / "triton" / "model.py"
DEFAULT_ONNX = Path(__file__).parents[1] / "models" / "ssdlite_mobilenet_v2_coco_300.onnx"

_TRITON_TYPES: dict[int, str] = {
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.INT32: "TYPE_INT32",
}


def write(repository: Path, source: Path, name: str, *, max_batch: int = 8) -> list[str]:
    """Write the two servable models of a detector: NAME (track B) and NAME_end2end (track C); returns their names.

    Raises:
        ExportError: the ONNX file cannot be served.
    """
    model = graph.load(source)
    _write_model(repository / name, name, graph.plain(model), max_batch)
    end2end = f"{name}_end2end"
    _write_model(repository / end2end, end2end, graph.end2end(model), max_batch)
    return [name, end2end]


def _write_model(folder: Path, name: str, model: onnx.ModelProto, max_batch: int) -> None:
    version = folder / "1"
    version.mkdir(parents=True, exist_ok=True)
    onnx.save(model, version / "model.onnx")
    shutil.copyfile(_MODEL_PY, version / "model.py")
    (folder / "config.pbtxt").write_text(_config(name, model, max_batch), "utf-8")


def _config(name: str, model: onnx.ModelProto, max_batch: int) -> str:
    def tensors(values: list[onnx.ValueInfoProto]) -> str:
        return ",\n".join(
            f'  {{ name: "{value.name}" data_type: {_TRITON_TYPES[value.type.tensor_type.elem_type]} dims: {_dims(value)} }}'
            for value in values
        )

    return f'''name: "{name}"
backend: "python"
max_batch_size: {max_batch}
input [
{tensors(list(model.graph.input))}
]
output [
{tensors(list(model.graph.output))}
]
# The workers send whole batches; what meets here at the same moment is merged, and nothing waits to be merged.
dynamic_batching {{ }}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
'''


def _dims(value: onnx.ValueInfoProto) -> list[int]:
    """Dimensions without the batch, -1 where they are not fixed."""
    return [dimension.dim_value or -1 for dimension in value.type.tensor_type.shape.dim][1:]

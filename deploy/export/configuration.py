"""Triton's `config.pbtxt` of a served graph, for each place where it may run.

target        backend       what runs the graph
cpu           python        ONNX Runtime inside deploy/triton/model.py: the embedded Triton, which has no other backend
onnxruntime   onnxruntime   Triton's own ONNX Runtime backend (NVIDIA's container), CPU or GPU
tensorrt      tensorrt      a plan built on the machine's own GPU by build-plans.sh
"""

from collections.abc import Sequence
from typing import Literal

import onnx

Target = Literal["cpu", "onnxruntime", "tensorrt"]
TARGETS: tuple[Target, ...] = ("cpu", "onnxruntime", "tensorrt")

_TYPES: dict[int, str] = {
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.INT32: "TYPE_INT32",
}

QUEUE_DELAY_US = 500
"""The inference worker sends whole batches; only what several workers send at the same moment is merged in Triton."""

QUEUE_TIMEOUT_US = 30_000_000


def text(name: str, graph: onnx.GraphProto, target: Target, max_batch: int) -> str:
    """The configuration of `graph` under this name."""
    backend = 'backend: "python"' if target == "cpu" else f'platform: "{_PLATFORMS[target]}"'
    parts = [
        f'name: "{name}"',
        backend,
        f"max_batch_size: {max_batch}",
        f"input [\n{_tensors(graph.input)}\n]",
        f"output [\n{_tensors(graph.output)}\n]",
        _instances(target),
    ]
    if max_batch > 1:
        parts.append(_batching(target, max_batch))
    if target != "cpu":
        parts.append(_warmup(graph, max_batch))
    parts.append(_PARAMETERS[target])
    return "\n".join(part for part in parts if part) + "\n"


_PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}

_PARAMETERS: dict[str, str] = {
    "cpu": "",
    "onnxruntime": """# One thread per instance would leave cores idle when a single picture comes.
parameters { key: "intra_op_thread_count" value { string_value: "0" } }""",
    "tensorrt": """# Copies into and out of the GPU overlap with the work before and after them.
optimization { input_pinned_memory { enable: true } output_pinned_memory { enable: true } cuda { graphs: true } }""",
}


def _instances(target: Target) -> str:
    if target == "cpu":
        return "# One batch has all cores, a picture on each; a second instance would only fight for them.\n" + (
            "instance_group [ { count: 1 kind: KIND_CPU } ]"
        )
    kind = "KIND_GPU" if target == "tensorrt" else "KIND_AUTO"
    return f"# Two: one batch is copied while the other is computed.\ninstance_group [ {{ count: 2 kind: {kind} }} ]"


def _batching(target: Target, max_batch: int) -> str:
    preferred = [size for size in (4, 8, 16, 32) if size <= max_batch] if target == "tensorrt" else []
    return batching(0 if target == "cpu" else QUEUE_DELAY_US, preferred)


def batching(delay_us: int, preferred: Sequence[int]) -> str:
    """Dynamic batching with this delay and these preferred sizes, and a queue that neither grows nor waits for ever."""
    lines = ["# A request that waited too long is refused rather than done for nobody; the worker asks again."]
    lines.append("dynamic_batching {")
    if preferred:
        lines.append(f"  preferred_batch_size: {list(preferred)}")
    lines.append(f"  max_queue_delay_microseconds: {delay_us}")
    lines.append("  default_queue_policy {")
    lines.append(f"    timeout_action: REJECT default_timeout_microseconds: {QUEUE_TIMEOUT_US} max_queue_size: 256")
    lines.append("  }\n}")
    return "\n".join(lines)


def _warmup(graph: onnx.GraphProto, max_batch: int) -> str:
    image = graph.input[0]
    return f"""# The first batch of each size pays for allocations and kernels; pay before a client waits.
model_warmup [ {{
  name: "grey" batch_size: {max_batch}
  inputs {{ key: "{image.name}" value {{ data_type: TYPE_UINT8 dims: {_dims(image)} zero_data: true }} }}
}} ]"""


def _tensors(values: Sequence[onnx.ValueInfoProto]) -> str:
    return ",\n".join(
        f'  {{ name: "{value.name}" data_type: {_TYPES[value.type.tensor_type.elem_type]} dims: {_dims(value)} }}'
        for value in values
    )


def _dims(value: onnx.ValueInfoProto) -> list[int]:
    """Dimensions without the batch, -1 where they are not fixed."""
    return [dimension.dim_value or -1 for dimension in value.type.tensor_type.shape.dim][1:]

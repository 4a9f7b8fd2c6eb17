"""Track A's file made from a detector's ONNX, so that no download is needed: the graph as a torch module, traced or exported.

Only the operators of `OPERATORS` are known: those of the built-in detector. Whoever has the model in PyTorch exports it from
there (docs/tracks.md). The file takes what the ONNX takes, f32 [n, 3, height, width] in 0..1, in batches of any size.

    python -m deploy.export.torch_module small.pt2        `torch.export`; any other ending is TorchScript
"""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import NodeProto, numpy_helper

from deploy.export.detector import Detector, load
from deploy.export.errors import ExportError

Operator = Callable[[Any, dict[str, Any], list[Any]], Any]
"""Runs a node: torch, its attributes, its inputs (constants of whole numbers as lists) -> its output, or a tuple of them."""

MOST_EXPORTED = 1024
"""The largest batch that `torch.export` is told of; the registry sets the real limit."""


def write(detector: Detector, file: Path) -> None:
    """Write the detector as `file`: `.pt2` by `torch.export`, else TorchScript.

    Raises:
        ExportError: torch is missing, an operator is unknown here, or the file cannot be written.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports] - an extra
    except ImportError:
        raise ExportError("torch is missing: pip install 'visionmesh[torch]'") from None
    # Two pictures: a batch of one would be taken for a constant.
    example = torch.rand(2, 3, detector.input_height, detector.input_width)
    module = _module(torch, detector.model.graph)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a tracer holds for constant, which shapes here are
            if file.suffix == ".pt2":
                batch = torch.export.Dim("batch", min=1, max=MOST_EXPORTED)
                torch.export.save(torch.export.export(module, (example,), dynamic_shapes=({0: batch},)), str(file))
            else:
                traced: Any = torch.jit.trace(module, example)
                torch.jit.freeze(traced).save(str(file))
    except OSError as error:
        raise ExportError(f"{file}: cannot be written ({error.strerror})") from None


def _module(torch: Any, graph: onnx.GraphProto) -> Any:
    """The graph as an `nn.Module`.

    Raises:
        ExportError: it uses an operator that is not in `OPERATORS`.
    """
    unknown = {node.op_type for node in graph.node} - OPERATORS.keys()
    if unknown:
        raise ExportError(f"uses {', '.join(sorted(unknown))}, which have no torch version here; export it from PyTorch itself")
    arrays = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
    weights = {name: torch.from_numpy(array.copy()) for name, array in arrays.items() if array.dtype.kind == "f"}
    lists = {name: array.tolist() for name, array in arrays.items() if array.dtype.kind != "f"}
    images, output = next(value.name for value in graph.input if value.name not in arrays), graph.output[0].name
    steps = [
        (OPERATORS[node.op_type], {given.name: onnx.helper.get_attribute_value(given) for given in node.attribute}, node)
        for node in graph.node
    ]

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, tensor in weights.items():
                self.register_buffer(name, tensor)

        def forward(self, given: Any) -> Any:
            values = {images: given, **lists, **dict(self.named_buffers())}
            for run, attributes, node in steps:
                _keep(values, node, run(torch, attributes, [values[name] for name in node.input]))
            return values[output]

    return Graph().eval()


def _keep(values: dict[str, Any], node: NodeProto, result: Any) -> None:
    results = result if isinstance(result, tuple) else (result,)
    values.update(zip(node.output, results, strict=True))


def _conv(torch: Any, attributes: dict[str, Any], inputs: list[Any]) -> Any:
    images, weight, *bias = inputs
    top, left, bottom, right = attributes["pads"]
    padding: Any = (top, left)
    if (top, left) != (bottom, right):  # as TensorFlow pads; torch's own padding is the same on both sides
        images, padding = torch.nn.functional.pad(images, (left, right, top, bottom)), 0
    return torch.nn.functional.conv2d(
        images, weight, bias[0] if bias else None, attributes["strides"], padding, attributes["dilations"], attributes["group"]
    )


def _reshape(_torch: Any, _attributes: dict[str, Any], inputs: list[Any]) -> Any:
    images, shape = inputs
    # ONNX (Reshape, allowzero=0): a 0 keeps the axis as it is.
    return images.reshape([images.shape[axis] if side == 0 else side for axis, side in enumerate(shape)])


def _gather(torch: Any, attributes: dict[str, Any], inputs: list[Any]) -> Any:
    return inputs[0].index_select(attributes["axis"], torch.tensor(inputs[1]))


OPERATORS: dict[str, Operator] = {
    "Add": lambda _torch, _attributes, inputs: inputs[0] + inputs[1],
    "Clip": lambda _torch, _attributes, inputs: inputs[0].clamp(inputs[1], inputs[2]),
    "Concat": lambda torch, attributes, inputs: torch.cat(inputs, attributes["axis"]),
    "Conv": _conv,
    "Exp": lambda _torch, _attributes, inputs: inputs[0].exp(),
    "Gather": _gather,
    "Mul": lambda _torch, _attributes, inputs: inputs[0] * inputs[1],
    "Reshape": _reshape,
    "Sigmoid": lambda _torch, _attributes, inputs: inputs[0].sigmoid(),
    "Split": lambda torch, attributes, inputs: torch.split(inputs[0], inputs[1], attributes["axis"]),
    "Sub": lambda _torch, _attributes, inputs: inputs[0] - inputs[1],
    "Transpose": lambda _torch, attributes, inputs: inputs[0].permute(attributes["perm"]),
}
"""ONNX operators (opset 17) as the built-in detector uses them. Boxes are split off as a tuple, all else is one tensor."""


def main(arguments: list[str]) -> int:
    """Write the built-in detector as each of these files; returns the exit code."""
    from deploy.export.repository import DEFAULT_ONNX

    try:
        for name in arguments:
            write(load(DEFAULT_ONNX), Path(name))
    except ExportError as error:
        print(f"torch_module: {error}", file=sys.stderr)  # noqa: T201 - the one line for who ran it by hand
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What Triton says of a model, read and held against the registry: its input's name, type and layout, and its outputs."""

from typing import Any

import msgspec
import numpy as np

from inference_worker.runtime import Array
from shared.errors import InferenceFailed
from shared.models import Model

ENCODED_INPUTS = frozenset({"encoded", "length", "affine"})
"""What a model of track D takes (`inference_worker.encoded`)."""


class Signature(msgspec.Struct, frozen=True):
    """What Triton says of a model: its input's name, `UINT8` or `FP32`, its layout and the largest batch; and its outputs, as
    name, type and shape of one picture's, if all shapes are fixed."""

    input_name: str
    datatype: str
    channels_first: bool
    max_batch: int
    outputs: tuple[tuple[str, str, tuple[int, ...]], ...] = ()


def read(model: Model, metadata: dict[str, Any], config: dict[str, Any]) -> Signature:
    """Read Triton's metadata and configuration of a model.

    Raises:
        InferenceFailed: it is no model that takes pictures of the registry's size.
    """
    inputs = metadata.get("inputs", [])
    if model.track == "D":
        if sorted(given["name"] for given in inputs) != sorted(ENCODED_INPUTS):
            raise InferenceFailed(f"{model.triton_model!r} in Triton does not take {', '.join(sorted(ENCODED_INPUTS))}")
        return Signature("encoded", "UINT8", channels_first=False, max_batch=int(config.get("max_batch_size", 0)) or 1)
    if len(inputs) != 1 or len(inputs[0].get("shape", [])) != 4:
        raise InferenceFailed(f"{model.triton_model!r} in Triton has not one input [batch, height, width, 3]")
    name, datatype = inputs[0]["name"], inputs[0]["datatype"]
    batch, *shape = (int(side) for side in inputs[0]["shape"])
    if datatype not in ("UINT8", "FP32"):
        raise InferenceFailed(f"{model.triton_model!r} in Triton takes {datatype}, not UINT8 or FP32")
    channels_first = shape[0] == 3 and shape[2] != 3
    height, width = shape[1:] if channels_first else shape[:2]
    if any(side not in (-1, wanted) for side, wanted in ((height, model.input_height), (width, model.input_width))):
        raise InferenceFailed(
            f"{model.triton_model!r} in Triton takes {width}x{height}, "
            f"the registry says {model.input_width}x{model.input_height}"
        )
    # max_batch_size 0 says that Triton does not batch; the model's own first axis tells what it takes then.
    limit = int(config.get("max_batch_size", 0)) or (model.max_batch if batch == -1 else max(batch, 1))
    return Signature(name, datatype, channels_first, limit, _fixed_outputs(metadata))


def _fixed_outputs(metadata: dict[str, Any]) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    outputs: list[tuple[str, str, tuple[int, ...]]] = []
    for output in metadata.get("outputs", []):
        shape = tuple(int(side) for side in output.get("shape", [])[1:])
        if min(shape, default=0) < 1 or output["datatype"] == "BYTES":
            return ()
        outputs.append((output["name"], output["datatype"], shape))
    return tuple(outputs)


def as_input(images: Array, wanted: Signature) -> Array:
    """Pictures, uint8 [n, height, width, 3], as the model takes them; 0..1 where that is FP32."""
    if wanted.datatype == "FP32":
        images = images.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if wanted.channels_first else images


def checked(array: Array | None, name: str, count: int) -> Array:
    """An output that has a row for each picture.

    Raises:
        InferenceFailed: it has not.
    """
    if array is None or len(array) != count:
        raise InferenceFailed(f"output {name!r} has {0 if array is None else len(array)} results for {count} pictures")
    return array

"""Where a model runs: the seam between the batching loop and Triton, or PyTorch in this process."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shared.models import Model

Array = npt.NDArray[Any]
Outputs = Mapping[str, Array]
"""A batch's outputs by name, each with the batch as its first axis."""

Image = bytes | memoryview
"""A letterboxed picture; a memoryview lies in shared memory."""


class Runtime(Protocol):
    """Runs models on batches of letterboxed pictures."""

    async def infer(self, model: Model, images: Sequence[Image], timeout_s: float) -> Outputs:
        """Run a batch. Each image is uint8 RGB [height, width, 3] of the model's input size.

        Raises:
            InferenceUnavailable: not now; worth another try.
            InferenceFailed: the model refuses this batch.
        """
        ...

    async def max_batch(self, model: Model) -> int:
        """The most images of a batch.

        Raises:
            InferenceUnavailable, InferenceFailed: see `infer`.
        """
        ...

    async def is_ready(self, model: Model) -> bool:
        """Whether a batch sent now would be run. Never raises."""
        ...

    async def close(self) -> None:
        """Let go of connections and memory."""
        ...


def stack(model: Model, images: Sequence[Image]) -> npt.NDArray[np.uint8]:
    """Images as one array, uint8 [n, height, width, 3]."""
    joined = images[0] if len(images) == 1 else b"".join(images)
    return np.frombuffer(joined, np.uint8).reshape(len(images), model.input_height, model.input_width, 3)

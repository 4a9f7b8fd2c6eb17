"""Track D: pictures as they were sent go to Triton, which decodes, letterboxes and runs them (deploy/triton/dali).

Three inputs: `encoded` uint8 [n, longest], `length` i32 [n, 1], `affine` f32 [n, 2, 3]. Triton takes one shape for a batch, so
each picture is padded with zeros to the longest of its batch, and its length says where it ends. A picture that DALI would not
decode as we do came letterboxed; it goes as a PPM file, whose pixels lie as they are behind a header of a few bytes, with the
affine that changes nothing.
"""

import asyncio
from collections.abc import Sequence

import numpy as np

from inference_worker.runtime import Array, Image, Outputs
from inference_worker.triton import Triton
from shared.messages import Affine
from shared.models import Model

MOST_PADDED_BYTES = 64 * 1024 * 1024
"""A batch that is larger with its padding is sent in parts: one huge picture must not make all its neighbours as huge."""

IDENTITY: Affine = (1, 0, 0, 0, 1, 0)


class Encoded(bytes):
    """A picture as it was sent, and the affine from the model's input to it."""

    affine: Affine

    @classmethod
    def of(cls, picture: bytes, affine: Affine) -> "Encoded":
        """The picture with its affine."""
        encoded = cls(picture)
        encoded.affine = affine
        return encoded


class EncodedTriton:
    """The `Runtime` of track D. Its images are `Encoded`, or letterboxed as on the other tracks."""

    def __init__(self, triton: Triton) -> None:
        self._triton = triton

    async def infer(self, model: Model, images: Sequence[Image], timeout_s: float) -> Outputs:
        """See `Runtime.infer`.

        Raises:
            CorruptImage: the only picture of a batch cannot be decoded.
        """
        parts = _parts([_as_encoded(model, image) for image in images])
        outputs = await asyncio.gather(
            *(self._triton.infer_arrays(model, arrays(part), len(part), timeout_s) for part in parts)
        )
        return {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}

    async def max_batch(self, model: Model) -> int:
        """See `Runtime.max_batch`."""
        return await self._triton.max_batch(model)

    async def is_ready(self, model: Model) -> bool:
        """See `Runtime.is_ready`."""
        return await self._triton.is_ready(model)

    async def close(self) -> None:
        """Nothing: the Triton it runs on is closed by whoever made it."""


def arrays(pictures: Sequence[Encoded]) -> dict[str, Array]:
    """The three inputs of a batch."""
    encoded = np.zeros((len(pictures), max(map(len, pictures))), np.uint8)
    for row, picture in zip(encoded, pictures, strict=True):
        row[: len(picture)] = np.frombuffer(picture, np.uint8)
    return {
        "encoded": encoded,
        "length": np.array([[len(picture)] for picture in pictures], np.int32),
        "affine": np.array([picture.affine for picture in pictures], np.float32).reshape(-1, 2, 3),
    }


def _as_encoded(model: Model, image: Image) -> Encoded:
    if isinstance(image, Encoded):
        return image
    header = b"P6\n%d %d\n255\n" % (model.input_width, model.input_height)
    return Encoded.of(header + image, IDENTITY)


def _parts(pictures: list[Encoded]) -> list[list[Encoded]]:
    """The batch, halved until none is too large with its padding; the order is kept."""
    if len(pictures) == 1 or len(pictures) * max(map(len, pictures)) <= MOST_PADDED_BYTES:
        return [pictures]
    half = len(pictures) // 2
    return _parts(pictures[:half]) + _parts(pictures[half:])

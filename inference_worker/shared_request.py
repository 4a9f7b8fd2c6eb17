"""One request whose tensor, and where Triton's outputs have a fixed size the outputs too, lie in shared memory: what is where.

A single picture that a decoder wrote into an arena stays where it is; others are gathered in a slot of our own.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from inference_worker.regions import Place, Regions, Staged, aligned
from inference_worker.runtime import Image, Outputs
from inference_worker.signature import Signature

DTYPES = {
    "BOOL": np.dtype(bool), "FP16": np.dtype("f2"), "FP32": np.dtype("f4"), "FP64": np.dtype("f8"),
    "INT8": np.dtype("i1"), "INT16": np.dtype("i2"), "INT32": np.dtype("i4"), "INT64": np.dtype("i8"),
    "UINT8": np.dtype("u1"), "UINT16": np.dtype("u2"), "UINT32": np.dtype("u4"), "UINT64": np.dtype("u8"),
}  # fmt: skip
"""Triton's names of the types that outputs have in memory as they have here."""

Layout = list[tuple[str, np.dtype[Any], tuple[int, ...]]]
"""A batch's outputs, one behind the other: name, type and shape with the batch as its first axis."""


class SharedRequest:
    """A request of `count` pictures at `tensor`, in a slot of our own if `staged`; the outputs go to `answer`, if any."""

    def __init__(self, count: int, tensor: Place, staged: Staged | None, answer: Staged | None, layout: Layout) -> None:
        self.count = count
        self.tensor = tensor
        self._staged = staged
        self._answer = answer
        self._layout = layout

    @property
    def places(self) -> list[Place]:
        """All that Triton has to know of."""
        return [self.tensor, *([self._answer.place] if self._answer else [])]

    def output_places(self) -> list[tuple[str, Place]]:
        """Where each output goes, by name; empty if they come as bytes."""
        if not self._answer:
            return []
        slot = self._answer.place
        at = slot.offset
        found: list[tuple[str, Place]] = []
        for name, dtype, shape in self._layout:
            place = Place(slot.region, slot.region_bytes, at, _size_bytes(dtype, shape))
            found.append((name, place))
            at += aligned(place.size_bytes)
        return found

    def finish(self) -> Outputs | None:
        """Free the tensor's slot of a request that was answered; its outputs, or `None` if they came as bytes."""
        if self._staged:
            self._staged.give_back()
        if not self._answer:
            return None
        arrays = self._answer.arrays([(dtype, shape) for _, dtype, shape in self._layout])
        return {name: array for (name, _, _), array in zip(self._layout, arrays, strict=True)}

    def give_back(self) -> None:
        """Free the slots of a request that was answered with an error."""
        for slot in (self._staged, self._answer):
            if slot:
                slot.give_back()


def plan(regions: Regions, signature: Signature, images: Sequence[Image]) -> SharedRequest | None:
    """A request by shared memory, or `None` if this one must go by bytes."""
    if signature.datatype != "UINT8" or signature.channels_first:
        return None
    count = len(images)
    place = regions.place_of(images[0]) if count == 1 else None
    staged = None if place else regions.gather(images)
    place = place or (staged.place if staged else None)
    if place is None:
        return None
    layout: Layout = []
    if all(kind in DTYPES for _, kind, _ in signature.outputs):
        layout = [(name, DTYPES[kind], (count, *shape)) for name, kind, shape in signature.outputs]
    answer = regions.stage(sum(aligned(_size_bytes(dtype, shape)) for _, dtype, shape in layout)) if layout else None
    return SharedRequest(count, place, staged, answer, layout)


def _size_bytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) * dtype.itemsize

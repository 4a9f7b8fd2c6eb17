"""How a batch of track D is laid out: padded, with lengths, and in parts where it would become too large."""

import numpy as np

from inference_worker import encoded
from inference_worker.encoded import IDENTITY, Encoded, arrays
from shared.models import Model

MODEL = Model(name="d", track="D", triton_model="d", input_width=32, input_height=40, head="end2end")


def test_pictures_are_padded_to_the_longest() -> None:
    pictures = [Encoded.of(b"abc", (1, 2, 3, 4, 5, 6)), Encoded.of(b"de", IDENTITY)]
    inputs = arrays(pictures)
    assert inputs["encoded"].tolist() == [[97, 98, 99], [100, 101, 0]]
    assert inputs["length"].tolist() == [[3], [2]]
    assert inputs["affine"].tolist()[0] == [[1, 2, 3], [4, 5, 6]]
    assert [array.dtype for array in inputs.values()] == [np.uint8, np.int32, np.float32]


def test_a_letterboxed_picture_goes_as_a_ppm() -> None:
    pixels = bytes(range(256)) * 15
    picture = encoded._as_encoded(MODEL, pixels)
    assert picture == b"P6\n32 40\n255\n" + pixels
    assert picture.affine == IDENTITY


def test_a_batch_too_large_with_its_padding_goes_in_parts_and_in_order() -> None:
    sizes = [10, encoded.MOST_PADDED_BYTES // 2, 20, 30, 40]
    pictures = [Encoded.of(bytes(size), IDENTITY) for size in sizes]
    parts = encoded._parts(pictures)
    assert [len(picture) for part in parts for picture in part] == sizes
    assert len(parts) > 1
    assert all(len(part) * max(map(len, part)) <= encoded.MOST_PADDED_BYTES for part in parts)

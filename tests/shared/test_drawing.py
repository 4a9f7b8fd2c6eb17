"""Labels on a drawn picture: each where its box is, none over another."""

import itertools

import pytest
from PIL import Image

from shared.drawing import Area, annotate, free_place
from shared.messages import Box, Detection

HEIGHT = 300


def overlap(one: Area, other: Area) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@pytest.mark.parametrize("y", [0.0, 140.0, HEIGHT - 20.0])
def test_labels_at_one_place_hide_none_of_each_other(y: float) -> None:
    taken: list[Area] = []
    for number in range(12):
        x = float(number % 3 * 10)  # a little apart, so that they overlap in part
        taken.append(free_place((x, y, x + 80, y + 20), taken, HEIGHT))
    assert taken[0] == (0, y, 80, y + 20)
    assert not any(overlap(one, other) for one, other in itertools.combinations(taken, 2))
    assert all(area[1] >= 0 and area[3] <= HEIGHT for area in taken)


def test_where_nothing_is_free_a_label_is_still_at_its_box() -> None:
    full: list[Area] = [(0, 0, 100, HEIGHT)]
    assert free_place((10, 50, 60, 70), full, HEIGHT) == (10, 50, 60, 70)


def test_a_frame_is_drawn_in_the_colour_of_its_class() -> None:
    canvas = Image.new("RGB", (200, 100))
    annotate(canvas, [Detection("cat", 3, 0.9, Box(50, 40, 150, 90)), Detection("cat", 3, 0.8, Box(55, 42, 150, 90))])
    assert canvas.getpixel((50, 80)) == canvas.getpixel((149, 80)) != (0, 0, 0)
    assert canvas.getpixel((100, 70)) == (0, 0, 0)

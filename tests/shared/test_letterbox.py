"""The affine of track D, beside the placement that maps boxes back: both must mean the same pixels."""

import pytest

from shared.letterbox import fit, to_stored

TURNS = {
    1: lambda x, y, _w, _h: (x, y),
    2: lambda x, y, w, _h: (w - x, y),
    3: lambda x, y, w, h: (w - x, h - y),
    4: lambda x, y, _w, h: (x, h - y),
    5: lambda x, y, _w, _h: (y, x),
    6: lambda x, y, w, _h: (y, w - x),
    7: lambda x, y, w, h: (h - y, w - x),
    8: lambda x, y, _w, h: (h - y, x),
}
"""EXIF orientation -> where a point of the upright picture (w x h) lies in the stored one."""


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(600, 400), (300, 451), (7, 5)])
def test_affine_and_placement_agree(orientation: int, size: tuple[int, int]) -> None:
    width, height = size
    box = fit(width, height, 300, 320)
    stored = (height, width) if orientation >= 5 else size
    a, b, c, d, e, f = to_stored(box, *stored, orientation)
    for x, y in [(0.0, 0.0), (width, 0.0), (width / 3, height / 7), (width, height)]:
        at_x = x * box.placement.scale_x + box.placement.pad_x
        at_y = y * box.placement.scale_y + box.placement.pad_y
        found = (a * at_x + b * at_y + c, d * at_x + e * at_y + f)
        assert found == pytest.approx(TURNS[orientation](x, y, width, height), abs=1e-6)

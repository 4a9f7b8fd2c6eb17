"""COCO's numbering: models know its 80 detection classes as 0-79, its annotation files as 1-90 with gaps."""

_LEFT_OUT = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
_CATEGORY_IDS = [number for number in range(1, 92) if number not in _LEFT_OUT]


def category_id(class_id: int) -> int:
    """The category of a class; one past COCO's 80 classes is numbered from 1 without gaps."""
    return _CATEGORY_IDS[class_id] if class_id < len(_CATEGORY_IDS) else class_id + 1

"""How a model's output is read: a head is a function and a row here; the registry's `head` names it."""

from inference_worker.heads.end2end import end2end
from inference_worker.heads.found import Found, Head, Thresholds
from inference_worker.heads.yolo import yolo

HEADS: dict[str, Head] = {"yolo": yolo, "end2end": end2end}

__all__ = ["HEADS", "Found", "Head", "Thresholds"]

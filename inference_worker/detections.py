"""From a head's findings in input pixels to the job's detections in pixels of the upright original."""

from inference_worker.heads import Found, Thresholds
from shared.errors import InferenceFailed
from shared.letterbox import to_original
from shared.messages import Box, Detection, Ticket
from shared.models import Model


def thresholds(ticket: Ticket, model: Model) -> Thresholds:
    """What this job asks for: its request's options, else the model's defaults."""
    options = ticket.options
    default_iou = model.iou if model.head == "yolo" else None
    return Thresholds(
        confidence=model.confidence if options.confidence is None else options.confidence,
        iou=default_iou if options.iou is None else options.iou,
        max_detections=options.max_detections or model.max_detections,
        class_ids=tuple(options.class_ids),
    )


def detections(found: Found, ticket: Ticket, model: Model) -> list[Detection]:
    """The detections of one picture, most confident first.

    Raises:
        InferenceFailed: the ticket says neither how large the picture was nor where it lay.
    """
    if ticket.image is None or ticket.placement is None:
        raise InferenceFailed("the job reached inference without its picture's size")
    width, height = ticket.image.width, ticket.image.height
    result: list[Detection] = []
    for box, score, class_id in zip(found.boxes.tolist(), found.scores.tolist(), found.class_ids.tolist(), strict=True):
        x1, y1, x2, y2 = to_original(tuple(box), ticket.placement, width, height)
        corners = Box(round(x1, 2), round(y1, 2), round(x2, 2), round(y2, 2))
        result.append(Detection(model.label(class_id), class_id, round(score, 4), corners))
    return result

"""What a request asks for, read from its query and headers and checked.

Every unknown name and wrong value is an `InvalidParameter` that names it: a silently ignored `confidense=0.9` would cost its
author an afternoon.
"""

import difflib
import math
import re
from collections.abc import Collection
from typing import Literal

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request

from gateway import addresses, encoders
from gateway.mesh import Mesh
from shared.errors import InvalidParameter
from shared.messages import Drawing, JobOptions
from shared.models import Model
from shared.settings import Settings

_ALIASES = {"conf": "confidence"}
_OPTIONS = ("confidence", "iou", "max_detections", "classes")
_MOST_DETECTIONS = 3000
_YES_OR_NO = {"": False, "true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d+(?:\.\d+)?)\"?", re.IGNORECASE)


def check_names(query: QueryParams, known: Collection[str]) -> None:
    """Refuse query parameters that this endpoint does not have.

    Raises:
        InvalidParameter: one is unknown, or given twice.
    """
    for name in query:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
            raise InvalidParameter(f"{name!r} is not a parameter of this endpoint; {hint}")
        if len(query.getlist(name)) > 1:
            raise InvalidParameter(f"{name!r} is given more than once")


def submit_names(*more: str) -> list[str]:
    """The query parameters of endpoints that take a picture."""
    return [*_OPTIONS, *_ALIASES, *more]


def job_options(query: QueryParams, model: Model) -> JobOptions:
    """The options of a job for this model.

    Raises:
        InvalidParameter: a value is no number, out of range, or no class of the model.
    """
    given = {_ALIASES.get(name, name): value for name, value in query.items()}
    most = _number("max_detections", given.get("max_detections"), 1, _MOST_DETECTIONS)
    if most is not None and most != int(most):
        raise InvalidParameter(f"max_detections: {given['max_detections']!r} is not a whole number")
    classes = [name.strip() for name in given.get("classes", "").split(",") if name.strip()]
    return JobOptions(
        confidence=_number("confidence", given.get("confidence"), 0, 1),
        iou=_number("iou", given.get("iou"), 0, 1),
        max_detections=None if most is None else int(most),
        class_ids=model.class_ids(classes),
    )


def keep_upload(query: QueryParams, settings: Settings) -> bool:
    """Whether the picture is kept with the result: as the request says, else as the mesh does."""
    return yes_or_no(query, "keep_upload", default=settings.keep_uploads)


class Submission(msgspec.Struct, frozen=True):
    """What a request that brings pictures asks for. `wait_s` is `None` where nobody waits."""

    model: Model
    options: JobOptions
    format_name: str
    wait_s: float | None


def submission(request: Request, mesh: Mesh) -> Submission:
    """What `POST /v1/jobs` and `POST /v1/batches` ask for.

    Raises:
        InvalidParameter: a parameter or header is unknown or wrong.
        UnknownModel: there is no such model.
    """
    query, settings = request.query_params, mesh.settings
    check_names(query, submit_names("model", "format", "callback_url", "keep_upload"))
    model = mesh.registry.get(query.get("model") or settings.default_model)
    callback, keeps = callback_url(query, settings), keep_upload(query, settings)
    options = msgspec.structs.replace(job_options(query, model), callback_url=callback, keep_upload=keeps)
    format_name = encoders.check_format(query.get("format"))
    return Submission(model, options, format_name, preferred_wait_s(request, settings.max_wait_s))


def drawing(query: QueryParams) -> Drawing:
    """How a picture is drawn.

    Raises:
        InvalidParameter: the format is unknown, or the size no whole number in range.
    """
    side = _number("max_side", query.get("max_side"), 16, 4096)
    if side is not None and side != int(side):
        raise InvalidParameter(f"max_side: {query['max_side']!r} is not a whole number")
    try:
        wanted: Literal["jpeg", "webp", "png"] = msgspec.convert(query.get("format") or "jpeg", Literal["jpeg", "webp", "png"])
    except msgspec.ValidationError:
        raise InvalidParameter(f"format: {query['format']!r} is not jpeg, webp or png") from None
    return Drawing(wanted, Drawing().max_side if side is None else int(side))


def callback_url(query: QueryParams, settings: Settings) -> str | None:
    """Where the end is to be told, if the request says so.

    Raises:
        InvalidParameter: no webhook could be sent there, or none is sent by this mesh.
    """
    url = query.get("callback_url")
    if not url:
        return None
    if not settings.webhook_secret:
        raise InvalidParameter("callback_url: this mesh sends no webhooks; its operator has set no MESH_WEBHOOK_SECRET")
    try:
        addresses.check_url(url, addresses.Exceptions.of(settings.webhook_private_hosts))
    except addresses.RefusedError as error:
        raise InvalidParameter(f"callback_url: {error}") from None
    return url


def yes_or_no(query: QueryParams, name: str, *, default: bool) -> bool:
    """A parameter that is true or false.

    Raises:
        InvalidParameter: it is neither.
    """
    text = query.get(name, "").lower()
    if text not in _YES_OR_NO:
        raise InvalidParameter(f"{name}: {query[name]!r} is not true or false")
    return _YES_OR_NO[text] if text else default


def shrinking_hints(query: QueryParams) -> None:
    """Check the predecessor's `resize` and `max_size`, which have no effect: the letterbox shrinks pictures here.

    Raises:
        InvalidParameter: `resize` is no yes or no, `max_size` no whole number of pixels.
    """
    yes_or_no(query, "resize", default=False)
    size = _number("max_size", query.get("max_size"), 1, 65_536)
    if size is not None and size != int(size):
        raise InvalidParameter(f"max_size: {query['max_size']!r} is not a whole number")


def wait_s(query: QueryParams, most_s: float) -> float:
    """How long a read may wait for the job's end: `?wait=N` seconds, at most `most_s`.

    Raises:
        InvalidParameter: it is no number.
    """
    return min(_number("wait", query.get("wait"), 0, math.inf) or 0.0, most_s)


def preferred_wait_s(request: Request, most_s: float) -> float | None:
    """The `wait` of the Prefer headers (RFC 7240), at most `most_s`; `None` if there is none. What cannot be read in a
    preference is ignored, as the RFC wants."""
    for value in request.headers.getlist("prefer"):
        match = _WAIT.search(value)
        if match:
            return min(float(match[1]), most_s)
    return None


def _number(name: str, text: str | None, least: float, most: float) -> float | None:
    if text is None or text == "":
        return None
    try:
        number = float(text)
    except ValueError:
        raise InvalidParameter(f"{name}: {text!r} is not a number") from None
    if not least <= number <= most:
        raise InvalidParameter(f"{name}: {text} is not between {least:g} and {most:g}")
    return number

"""What a mesh is asked, as flows: submit, wait, detect, cancel, health. `visionmesh.exchange` says how they are performed."""

import secrets
from collections.abc import Iterable
from typing import Any, TypedDict, TypeVar
from urllib.parse import quote

import msgspec

from shared.messages import TERMINAL
from visionmesh.errors import BadAnswer, TimedOut
from visionmesh.exchange import READ_TIMEOUT_S, Answer, Flow, Request, Terms, exchange
from visionmesh.results import Result

WAIT_S = 20.0
"""How long one long-poll asks the mesh to wait; a mesh grants at most its MESH_MAX_WAIT_S."""

T = TypeVar("T")


class DetectOptions(TypedDict, total=False):
    """What can be asked of a detection; what is left out is the model's own default.

    `model` is a name of `/v1/models`; `confidence` and `iou` lie in 0..1; `max_detections` bounds how many are reported;
    `classes` are names or numbers of those to report, or a string of them with commas.
    """

    model: str
    confidence: float | None
    iou: float | None
    max_detections: int | None
    classes: str | Iterable[str | int]


def submit(
    picture: bytes,
    options: DetectOptions,
    terms: Terms,
    *,
    wait_s: float = 0.0,
    idempotency_key: str = "",
) -> Flow[Result]:
    """Make a job of a picture; with `wait_s` it may have ended when this does. A retry never makes a second job."""
    headers = {
        "content-type": "application/octet-stream",
        "idempotency-key": idempotency_key or secrets.token_hex(16),
    }
    if wait_s:
        headers["prefer"] = f"wait={wait_s:.3f}"
    request = Request(
        method="POST",
        path="/v1/jobs",
        params=query_of(options),
        headers=headers,
        content=picture,
        read_timeout_s=wait_s + READ_TIMEOUT_S,
    )
    return decode((yield from exchange(request, terms)), Result)


def detect(picture: bytes, options: DetectOptions, terms: Terms) -> Flow[Result]:
    """Submit a picture and wait for its job's end, however it ends.

    Raises:
        TimedOut: the deadline came first.
    """
    result = yield from submit(picture, options, terms, wait_s=min(WAIT_S, terms.deadline.left_s()))
    if result.status in TERMINAL:
        return result
    return (yield from wait(result.id, terms))


def read(job_id: str, terms: Terms, *, wait_s: float = 0.0) -> Flow[Result]:
    """The job, at once or when it has ended, at the latest after `wait_s`."""
    request = Request(
        method="GET",
        path=job_path(job_id),
        params={"wait": f"{wait_s:.3f}"} if wait_s else {},
        read_timeout_s=wait_s + READ_TIMEOUT_S,
    )
    return decode((yield from exchange(request, terms)), Result)


def wait(job_id: str, terms: Terms) -> Flow[Result]:
    """The job once it has ended.

    Raises:
        TimedOut: the deadline came first.
    """
    while True:
        result = yield from read(job_id, terms, wait_s=min(WAIT_S, terms.deadline.left_s()))
        if result.status in TERMINAL:
            return result
        if not terms.deadline.left_s():
            raise TimedOut(
                f"job {job_id} has not ended within {terms.deadline.timeout_s:g} s; it is {result.status}", job_id=job_id
            )


def cancel(job_id: str, terms: Terms) -> Flow[Result]:
    """Cancel a job; one that has ended stays as it is."""
    request = Request(method="POST", path=f"{job_path(job_id)}/cancel")
    return decode((yield from exchange(request, terms)), Result)


def document(path: str, terms: Terms) -> Flow[dict[str, Any]]:
    """A document of the mesh, like `/health`."""
    return decode((yield from exchange(Request(method="GET", path=path), terms)), dict[str, Any])


def job_path(job_id: str) -> str:
    """Where a job is found; an ID with a slash in it is still only an ID."""
    return f"/v1/jobs/{quote(job_id, safe='')}"


def decode(answer: Answer, kind: type[T]) -> T:
    """The content of an answer, JSON or MessagePack.

    Raises:
        BadAnswer: it is neither, or not a `kind`.
    """
    media = answer.headers.get("content-type", "").partition(";")[0]
    decoder = msgspec.msgpack.decode if media == "application/msgpack" else msgspec.json.decode
    try:
        return decoder(answer.content, type=kind)
    except msgspec.DecodeError:
        raise BadAnswer(f"what answers there is not a mesh: it sends {media or 'something without a content type'}") from None


def query_of(options: DetectOptions) -> dict[str, str]:
    """The options as query parameters."""
    classes = options.get("classes", "")
    given = {
        "model": options.get("model"),
        "confidence": options.get("confidence"),
        "iou": options.get("iou"),
        "max_detections": options.get("max_detections"),
        "classes": classes if isinstance(classes, str) else ",".join(str(name) for name in classes),
    }
    return {name: str(value) for name, value in given.items() if value is not None and value != ""}

"""An endpoint as one row: where it is, who answers, and all that its documentation says of it.

`Endpoint` is a Starlette route, so the table that routes requests is the one that `/openapi.json` and `/docs` are made from
(`gateway.openapi`). Types are msgspec's and Python's: their JSON Schemas come from msgspec.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.addresses import MOST_CHARACTERS
from shared.errors import MeshError

Where = Literal["path", "query", "header"]
Takes = Literal["picture", "pictures"]
Gives = Literal["data", "events", "image", "html", "json", "empty"]
"""How an answer is written: `data` is JSON or MessagePack by `Accept`."""

TAGS = {
    "Jobs": "A picture in, its job at once, its objects when it has ended.",
    "Batches": "Many pictures in one request.",
    "Models": "What the mesh can look for.",
    "Predict": "The predecessor's endpoints: pictures in, detections out, in one request.",
    "Mesh": "Is it alive, is it ready, how is it; and its documents.",
}


class Parameter(msgspec.Struct, frozen=True):
    """One parameter. `text` is a sentence for people; `example` is a value that works on every mesh."""

    name: str
    type: Any
    text: str
    where: Where = "query"
    example: Any = None


class Answer(msgspec.Struct, frozen=True):
    """One answer: its status, the type of its content (or a tuple of those it may be), and what it says."""

    status: int
    text: str
    type: Any = None
    gives: Gives = "data"
    headers: tuple[str, ...] = ()


class Example(msgspec.Struct, frozen=True):
    """A request that works. In `path`, `JOB` and `BATCH` stand for the IDs of a job and a batch that have succeeded."""

    path: dict[str, str] = {}
    query: dict[str, str] = {}
    headers: dict[str, str] = {}
    status: int = 200


class Endpoint(Route):
    """A route with its documentation."""

    def __init__(
        self,
        method: Literal["GET", "POST", "DELETE"],
        path: str,
        handler: Callable[[Request], Awaitable[Response]],
        *,
        tag: str,
        parameters: Sequence[Parameter] = (),
        takes: Takes | None = None,
        answers: Sequence[Answer],
        problems: Sequence[type[MeshError]] = (),
        example: Example,
    ) -> None:
        super().__init__(path, handler, methods=[method])
        self.method = method
        self.tag = tag
        self.parameters = parameters
        self.takes = takes
        self.answers = answers
        self.problems = problems
        self.example = example

    @property
    def text(self) -> str:
        """What it does, from its handler's docstring: what follows the method and path."""
        return (self.endpoint.__doc__ or "").partition(": ")[2].strip() or self.name


# --- parameters that several endpoints share ---------------------------------------------------------------------------

JOB_ID = Parameter("job_id", str, "The job's ID, from the answer that accepted it.", "path", "JOB")
BATCH_ID = Parameter("batch_id", str, "The batch's ID, from the answer that accepted it.", "path", "BATCH")
MODEL_NAME = Parameter("model", str, "A model's name, or another spelling of it.", "path", "small")
MODEL = Parameter("model", str, "The model's name; the mesh's default model if there is none.", example="small")
FORMAT = Parameter(
    "format",
    Literal["mesh", "ultralytics", "roboflow", "coco"],
    "How detections are written: ours, or in the dialect of other tools.",
    example="mesh",
)
WAIT = Parameter("wait", Annotated[float, Meta(ge=0)], "Seconds to wait for the end before answering, at most 30.", example=10)
OPTIONS = (
    Parameter("confidence", Annotated[float, Meta(ge=0, le=1)], "Leave out detections below this.", example=0.4),
    Parameter("conf", Annotated[float, Meta(ge=0, le=1)], "The same as `confidence`."),
    Parameter("iou", Annotated[float, Meta(ge=0, le=1)], "Two boxes that overlap more are one object.", example=0.45),
    Parameter("max_detections", Annotated[int, Meta(ge=1, le=3000)], "Most detections, the most confident first.", example=100),
    Parameter("classes", str, "Names or numbers of the wanted classes, separated by commas.", example="person,cat"),
)
CALLBACK_URL = Parameter(
    "callback_url",
    Annotated[str, Meta(max_length=MOST_CHARACTERS, extra_json_schema={"format": "uri"})],
    "Told the end by a signed POST (Standard Webhooks), where the mesh sends webhooks; see docs/webhooks.md.",
)
KEEP_UPLOAD = Parameter("keep_upload", bool, "Keep the picture with its result, so that it can be drawn.", example=True)
PREFER = Parameter(
    "Prefer", str, "`wait=10` waits up to 10 seconds for the end; `respond-async` does not wait.", "header", "wait=10"
)
IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key", str, "Sent again with the same request, it leads to what the first has made.", "header"
)
HINTS = (
    Parameter("resize", bool, "Accepted for the predecessor's clients, without effect.", example=True),
    Parameter("max_size", Annotated[int, Meta(ge=1, le=65_536)], "Accepted likewise, without effect.", example=1024),
)

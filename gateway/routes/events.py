"""`GET /v1/jobs/ID/events`: one job's way as server-sent events.

    id: 1.1
    event: processing
    data: {"id": "...", "status": "processing", "stage": "decoding", ...}

The hash in Redis is the truth and every event carries the whole job, so resuming needs no log of events: the stream begins
with the job as it is, unless `Last-Event-ID` says that the reader has seen just that. An ID is `ATTEMPTS.STEP`, or `end`.
(https://html.spec.whatwg.org/multipage/server-sent-events.html)
"""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway import parameters
from gateway.endpoint import JOB_ID, Answer, Endpoint, Example, Parameter
from gateway.mesh import Mesh
from shared import errors
from shared.errors import MeshError
from shared.messages import TERMINAL, Job, job_to_json
from shared.store.events import Waiter

HEARTBEAT_S = 15.0
"""A comment this often tells proxies and readers that the stream still stands."""

QUEUED_REREAD_S, PROCESSING_REREAD_S = 5.0, 0.2
"""The stages of a job in work are not published one by one, for the sake of jobs that nobody follows: they are looked at
often enough for a person's eye. A queued job's next step is published."""

RETRY_MS = 1000
"""What a browser is told to wait before it comes back to a stream that broke off."""

_STEPS = {None: 0, "decoding": 1, "decoded": 2, "inferring": 3}
_END = "end"
_LATEST = (1 << 31, 0)
_EVENT_ID = re.compile(r"(\d{1,9})\.(\d)")

Rank = tuple[int, int]
"""How far a job is: attempts, then step. Events may come late or twice; what does not rank higher is no news."""


class _StoppingError(Exception):
    """This process was told to stop."""


async def follow(request: Request) -> Response:
    """`GET /v1/jobs/ID/events`: the job's state now and each later one, until it has ended."""
    mesh: Mesh = request.state.mesh
    parameters.check_names(request.query_params, ["last_event_id"])
    request.scope["waited"] = True
    # A browser cannot set the header on its first request; after a reload a page may give it as a parameter.
    seen = _rank_of(request.headers.get("last-event-id") or request.query_params.get("last_event_id", ""))
    job = await mesh.store.jobs.read(request.path_params["job_id"])
    if job.status in TERMINAL and seen == _LATEST:
        return Response(status_code=204)  # tells a browser not to come back
    return StreamingResponse(
        _stream(mesh, job.id, seen),
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


async def _stream(mesh: Mesh, job_id: str, seen: Rank) -> AsyncGenerator[bytes]:
    yield f"retry: {RETRY_MS}\n\n".encode()
    told_s, reread_s = time.monotonic(), QUEUED_REREAD_S
    # What goes wrong from here on - no store, a stopping gateway - ends the stream: its reader comes back and learns why.
    with contextlib.suppress(MeshError, _StoppingError):
        async with mesh.store.events.watch(job_id) as waiter:
            while True:
                job = await _next(mesh, waiter, reread_s)
                if job is not None:
                    if _rank(job) > seen:
                        yield _event(job)
                        seen, told_s = _rank(job), time.monotonic()
                    if job.status in TERMINAL:
                        return
                    reread_s = PROCESSING_REREAD_S if job.status == "processing" else QUEUED_REREAD_S
                if time.monotonic() - told_s > HEARTBEAT_S:
                    yield b": still here\n\n"
                    told_s = time.monotonic()


async def _next(mesh: Mesh, waiter: Waiter, reread_s: float) -> Job | None:
    """The job's next event, or as it is after `reread_s`.

    Raises:
        _StoppingError: this process was told to stop.
    """
    event, stop = asyncio.ensure_future(waiter.next(reread_s)), asyncio.ensure_future(mesh.closing.wait())
    try:
        await asyncio.wait({event, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not event.done():
            raise _StoppingError
        return event.result()
    finally:
        for task in (event, stop):
            task.cancel()
        await asyncio.gather(event, stop, return_exceptions=True)


def _rank(job: Job) -> Rank:
    return _LATEST if job.status in TERMINAL else (job.attempts, _STEPS[job.stage])


def _rank_of(event_id: str) -> Rank:
    match = _EVENT_ID.fullmatch(event_id)
    if match:
        return int(match[1]), int(match[2])
    return _LATEST if event_id == _END else (-1, 0)


def _event(job: Job) -> bytes:
    attempts, step = _rank(job)
    event_id = _END if job.status in TERMINAL else f"{attempts}.{step}"
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (event_id.encode(), job.status.encode(), job_to_json(job))


ROUTES = [
    Endpoint(
        "GET",
        "/v1/jobs/{job_id}/events",
        follow,
        tag="Jobs",
        parameters=(
            JOB_ID,
            Parameter("Last-Event-ID", str, "The last event that was seen; only later ones are sent.", "header"),
            Parameter("last_event_id", str, "The same, for readers that cannot set headers."),
        ),
        answers=(
            Answer(200, "The events.", Job, gives="events"),
            Answer(204, "The job has ended and the reader has seen it.", gives="empty"),
        ),
        problems=(errors.UnknownJob, errors.ExpiredJob),
        example=Example(path={"job_id": "JOB"}),
    )
]

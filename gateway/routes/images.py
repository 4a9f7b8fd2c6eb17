"""`GET /v1/jobs/ID/image`: the picture with its detections drawn in. Pixels are a preprocess worker's; here they pass by."""

import asyncio
import contextlib
from typing import Annotated

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from gateway import parameters
from gateway.endpoint import JOB_ID, Answer, Endpoint, Example, Parameter
from gateway.mesh import Mesh
from shared import errors
from shared.errors import DeadlinePassed
from shared.messages import Drawing
from shared.store.renders import ASK_AGAIN_S


async def show(request: Request) -> Response:
    """`GET /v1/jobs/ID/image`: the picture, upright, with a frame and a label for each detection, while it is kept."""
    mesh: Mesh = request.state.mesh
    parameters.check_names(request.query_params, ["format", "max_side"])
    drawing = parameters.drawing(request.query_params)
    request.scope["waited"] = True
    job_id = request.path_params["job_id"]
    await mesh.store.renders.check(job_id)
    picture = await _drawn(mesh, job_id, drawing)
    return Response(picture, media_type=f"image/{drawing.format}", headers={"cache-control": "private, max-age=300"})


async def _drawn(mesh: Mesh, job_id: str, drawing: Drawing) -> bytes:
    """The picture, once it has been drawn.

    Raises:
        DeadlinePassed: no worker has drawn it in time.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(mesh.settings.max_wait_s), mesh.store.events.bell_of_render(job_id) as bell:
            while (picture := await mesh.store.renders.ask(job_id, drawing)) is None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ASK_AGAIN_S):
                        await bell.wait()
                bell.clear()
            return picture
    raise DeadlinePassed("no worker has drawn the picture in time", job_id=job_id)


ROUTES = [
    Endpoint(
        "GET",
        "/v1/jobs/{job_id}/image",
        show,
        tag="Jobs",
        parameters=(
            JOB_ID,
            Parameter("format", Drawing.__annotations__["format"], "How it is encoded.", example="jpeg"),
            Parameter("max_side", Annotated[int, Meta(ge=16, le=4096)], "The longer side in pixels, at most.", example=1280),
        ),
        answers=(Answer(200, "The picture.", gives="image"),),
        problems=(
            errors.UnknownJob,
            errors.PictureNotKept,
            errors.NoResult,
            errors.ExpiredJob,
            errors.DecodeTimeout,
            errors.DecoderCrashed,
            errors.DeadlinePassed,
        ),
        example=Example(path={"job_id": "JOB"}, query={"format": "webp", "max_side": "320"}),
    )
]

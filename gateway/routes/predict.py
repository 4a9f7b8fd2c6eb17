"""`/predict/{model}`: the predecessor's endpoint, a picture in and its detections out in one request."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import encoders, parameters, problems, uploads
from gateway.mesh import Mesh
from gateway.routes.jobs import accept_and_wait
from shared.errors import DeadlinePassed
from shared.messages import Job
from shared.models import Model

_IGNORED = ("resize", "max_size")
"""The predecessor's hints on how to shrink a picture; the letterbox does that here, whatever they say."""


async def predict(request: Request) -> Response:
    """`POST /predict/{model}`: detections in the predecessor's form, or the problem that the job ended with."""
    mesh: Mesh = request.state.mesh
    request.scope["waited"] = True
    async with uploads.open_body(request, mesh) as body:
        parameters.check_names(request.query_params, parameters.submit_names(*_IGNORED))
        model = mesh.registry.get(request.path_params["model"])
        options = parameters.job_options(request.query_params, model)
        upload = await uploads.receive(request, body, mesh)
    wait_s = mesh.settings.max_wait_s
    # Nobody can ask for this job's result later, so its work is not worth more time than its reader has.
    job = await accept_and_wait(request, upload, model, options, wait_s=wait_s, deadline_s=wait_s)
    if job.error:
        raise problems.of_job(job.error, job.id)
    if job.detections is None:
        raise DeadlinePassed(f"no result within {wait_s:g} s; the job is {job.status}", job_id=job.id)
    request.scope["stages_ms"] = job.timings_ms
    return encoders.answer(request, predecessor_form(job, model))


def predecessor_form(job: Job, model: Model) -> dict[str, Any]:
    """A finished job as the predecessor answered it."""
    return {
        "detections": [
            {
                "x1": found.box.x1,
                "y1": found.box.y1,
                "x2": found.box.x2,
                "y2": found.box.y2,
                "confidence": found.confidence,
                "class": found.class_id,
            }
            for found in job.detections or ()
        ],
        "status": "success",
        "track": model.track,
        "preprocessing": "gpu" if model.track == "D" else "cpu",
        "nms_location": "cpu" if model.track in "AB" else "gpu",
    }


ROUTES = [Route("/predict/{model}", predict, methods=["POST"])]

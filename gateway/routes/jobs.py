"""`/v1/jobs`: submit a picture, follow its job, cancel it."""

import contextlib

from starlette.requests import Request
from starlette.responses import Response

from gateway import encoders, parameters, receiving
from gateway.answers import Deliveries
from gateway.endpoint import (
    CALLBACK_URL,
    FORMAT,
    IDEMPOTENCY_KEY,
    JOB_ID,
    KEEP_UPLOAD,
    MODEL,
    OPTIONS,
    PREFER,
    WAIT,
    Answer,
    Endpoint,
    Example,
)
from gateway.mesh import Mesh
from gateway.uploads import Upload
from shared import errors
from shared.errors import MeshError
from shared.messages import TERMINAL, Job, JobOptions
from shared.models import Model


async def submit(request: Request) -> Response:
    """`POST /v1/jobs?model=`: 202 with the job, or 200 with its end if `Prefer: wait=N` was given and kept."""
    mesh: Mesh = request.state.mesh
    async with receiving.open_body(request, mesh) as body:
        asked = parameters.submission(request, mesh)
        upload = await receiving.receive(request, body, mesh)
    if not asked.wait_s:
        job = await upload.accept(asked.model, asked.options, traceparent=request.scope["traceparent"])
    else:
        request.scope["waited"] = True
        job = await accept_and_wait(request, upload, asked.model, asked.options, wait_s=asked.wait_s)
    headers = {"location": f"/v1/jobs/{job.id}"}
    if job.status in TERMINAL:
        if asked.wait_s:
            headers["preference-applied"] = f"wait={asked.wait_s:g}"
        return encoders.answer_job(request, job, asked.format_name, 200, headers)
    return encoders.answer_job(request, job, asked.format_name, 202, headers | {"retry-after": "1"})


async def accept_and_wait(
    request: Request,
    upload: Upload,
    model: Model,
    options: JobOptions,
    *,
    wait_s: float,
    deadline_s: float | None = None,
) -> Job:
    """Accept a job and wait for its end; after `wait_s` it is returned as it is then."""
    mesh: Mesh = request.state.mesh
    events = mesh.store.events
    with events.expect(upload.job_id) as waiter:
        job = await upload.accept(
            model, options, reply_to=events.channel, deadline_s=deadline_s, traceparent=request.scope["traceparent"]
        )
        if job.id == upload.job_id:
            ended = await waiter.wait(wait_s)
            return ended or await mesh.store.jobs.read(job.id)
    return await wait_for(mesh, job.id, wait_s)  # the job of an earlier request with this idempotency key


async def wait_for(mesh: Mesh, job_id: str, wait_s: float) -> Job:
    """A job once it has ended, or as it is after `wait_s`."""
    job = await mesh.store.jobs.read(job_id)
    if job.status in TERMINAL or not wait_s:
        return job
    async with mesh.store.events.watch(job_id) as waiter:
        ended = await waiter.wait(wait_s)
    return ended or await mesh.store.jobs.read(job_id)


async def read(request: Request) -> Response:
    """`GET /v1/jobs/ID?wait=N`: the job, at once or when it has ended."""
    mesh: Mesh = request.state.mesh
    query = request.query_params
    parameters.check_names(query, ["wait", "format"])
    format_name = encoders.check_format(query.get("format"))
    wait_s = parameters.wait_s(query, mesh.settings.max_wait_s)
    request.scope["waited"] = bool(wait_s)
    job = await wait_for(mesh, request.path_params["job_id"], wait_s)
    headers = {} if job.status in TERMINAL else {"retry-after": "1"}
    return encoders.answer_job(request, job, format_name, 200, headers)


async def cancel(request: Request) -> Response:
    """`POST /v1/jobs/ID/cancel` and `DELETE /v1/jobs/ID`: the job as it is afterwards; what had ended stays as it ended."""
    mesh: Mesh = request.state.mesh
    parameters.check_names(request.query_params, ["format"])
    format_name = encoders.check_format(request.query_params.get("format"))
    return encoders.answer_job(request, await mesh.store.endings.cancel(request.path_params["job_id"]), format_name)


async def deliveries(request: Request) -> Response:
    """`GET /v1/jobs/ID/deliveries`: how the job's callback was told so far, oldest try first."""
    mesh: Mesh = request.state.mesh
    parameters.check_names(request.query_params, [])
    subject_id = request.path_params.get("job_id") or request.path_params["batch_id"]
    return encoders.answer(request, Deliveries(await mesh.store.webhooks.deliveries(subject_id)))


async def cancel_quietly(mesh: Mesh, job_id: str) -> None:
    """Cancel a job that nobody waits for any more."""
    with contextlib.suppress(MeshError):
        await mesh.store.endings.cancel(job_id)


_PROBLEMS = (errors.UnknownJob, errors.ExpiredJob)
_JOB = Answer(200, "The job.", encoders.ANY_JOB)
_EXAMPLE = Example(path={"job_id": "JOB"})

ROUTES = [
    Endpoint(
        "POST",
        "/v1/jobs",
        submit,
        tag="Jobs",
        parameters=(MODEL, *OPTIONS, FORMAT, CALLBACK_URL, KEEP_UPLOAD, PREFER, IDEMPOTENCY_KEY),
        takes="picture",
        answers=(
            Answer(
                200, "The job has ended within the time to wait.", encoders.ANY_JOB, headers=("location", "preference-applied")
            ),
            Answer(202, "The job is accepted.", encoders.ANY_JOB, headers=("location", "retry-after")),
        ),
        problems=(
            errors.EmptyBody,
            errors.UnknownModel,
            errors.BodyTimeout,
            errors.StillAccepting,
            errors.TooLarge,
            errors.UnsupportedMedia,
            errors.IdempotencyMismatch,
        ),
        example=Example(query={"model": "small"}, headers={"prefer": "wait=10"}),
    ),
    Endpoint(
        "GET",
        "/v1/jobs/{job_id}",
        read,
        tag="Jobs",
        parameters=(JOB_ID, WAIT, FORMAT),
        answers=(_JOB,),
        problems=_PROBLEMS,
        example=Example(path={"job_id": "JOB"}, query={"wait": "10", "format": "coco"}),
    ),
    Endpoint(
        "GET",
        "/v1/jobs/{job_id}/deliveries",
        deliveries,
        tag="Jobs",
        parameters=(JOB_ID,),
        answers=(Answer(200, "The tries so far.", Deliveries),),
        problems=(errors.UnknownJob,),
        example=_EXAMPLE,
    ),
    Endpoint(
        "DELETE",
        "/v1/jobs/{job_id}",
        cancel,
        tag="Jobs",
        parameters=(JOB_ID, FORMAT),
        answers=(_JOB,),
        problems=_PROBLEMS,
        example=_EXAMPLE,
    ),
    Endpoint(
        "POST",
        "/v1/jobs/{job_id}/cancel",
        cancel,
        tag="Jobs",
        parameters=(JOB_ID, FORMAT),
        answers=(_JOB,),
        problems=_PROBLEMS,
        example=_EXAMPLE,
    ),
]

"""`/v1/batches`: many pictures in one request, followed and read as one.

Each picture becomes a job as soon as it has come, so the first are done while the last are still on their way. A picture that
is refused is refused alone; a request that does not come as a whole leaves nothing behind.
"""

import asyncio
import contextlib
import hashlib

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway import encoders, parameters, receiving, uploads
from gateway.answers import Deliveries
from gateway.body import Body
from gateway.endpoint import (
    BATCH_ID,
    CALLBACK_URL,
    FORMAT,
    IDEMPOTENCY_KEY,
    KEEP_UPLOAD,
    MODEL,
    OPTIONS,
    PREFER,
    WAIT,
    Answer,
    Endpoint,
    Example,
    Parameter,
)
from gateway.mesh import Mesh
from gateway.routes.jobs import deliveries
from shared import errors
from shared.errors import IdempotencyMismatch, MeshError, StoreUnavailable
from shared.messages import Batch, JobOptions
from shared.models import Model
from shared.store.batches import Opening

REREAD_S = 5.0
"""A batch that is waited for is read this often even if nothing was heard of it."""


async def submit(request: Request) -> Response:
    """`POST /v1/batches?model=`: 202 with the batch, or 200 once it has finished if `Prefer: wait=N` was given and kept."""
    mesh: Mesh = request.state.mesh
    async with receiving.open_batch_body(request, mesh) as body:
        asked = parameters.submission(request, mesh)
        model, options = asked.model, asked.options
        key = uploads.hash_key(mesh, request.headers.get("idempotency-key"))
        # The callback is the batch's: its members have none of their own.
        member_options = msgspec.structs.replace(options, callback_url=None)
        opening = await mesh.store.batches.open(
            model=model, callback_url=options.callback_url, idempotency_key=key, tenant=mesh.tenant
        )
        request_hash = hashlib.blake2b(model.name.encode() + b"\0" + msgspec.msgpack.encode(options), digest_size=16)
        if opening.earlier:
            async with contextlib.aclosing(receiving.picture_parts(request, body, mesh, request_hash)) as parts:
                async for _ in parts:
                    pass  # only their hash is wanted
            if request_hash.hexdigest() != opening.earlier_hash:
                raise IdempotencyMismatch("this Idempotency-Key was used with other pictures or other parameters")
        else:
            await _receive(request, body, opening, model, member_options, request_hash)
    batch_id = opening.earlier or opening.id
    request.scope["waited"] = True
    batch = await wait_for(mesh, batch_id, asked.wait_s or 0.0)
    headers = {"location": f"/v1/batches/{batch_id}"}
    if asked.wait_s and batch.status == "finished":
        headers["preference-applied"] = f"wait={asked.wait_s:g}"
        return encoders.answer_batch(request, batch, asked.format_name, 200, headers)
    return encoders.answer_batch(request, batch, asked.format_name, 202, headers | {"retry-after": "1"})


async def _receive(
    request: Request, body: Body, opening: Opening, model: Model, options: JobOptions, hashed: hashlib.blake2b
) -> None:
    """Make each picture a job of the batch as it comes, and seal the batch; if anything breaks, none of it stays."""
    mesh: Mesh = request.state.mesh
    batches = mesh.store.batches
    job_ids: list[str] = []
    total = 0
    try:
        async with contextlib.aclosing(
            receiving.receive_many(request, body, mesh, batch=opening.id, hashed=hashed)
        ) as pictures:
            async for picture in pictures:
                member: str | MeshError
                if isinstance(picture, MeshError):
                    member = picture
                else:
                    try:
                        job = await picture.accept(model, options, traceparent=request.scope["traceparent"])
                    except StoreUnavailable:
                        raise
                    except MeshError as error:
                        member = error
                    else:
                        member = job.id
                        job_ids.append(job.id)
                await batches.add(opening, total, member)
                total += 1
        await batches.seal(opening, total, hashed.hexdigest())
    except BaseException:  # also the cancellation of a stopping gateway
        with contextlib.suppress(MeshError):
            await batches.abandon(opening, job_ids)
        raise


async def wait_for(mesh: Mesh, batch_id: str, wait_s: float, *, with_results: bool = True) -> Batch:
    """A batch once it has finished, or as it is after `wait_s`."""
    batch = await mesh.store.batches.read(batch_id, with_results=with_results)
    if batch.status == "finished" or not wait_s:
        return batch
    async with mesh.store.events.bell_of_batch(batch_id) as bell:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                # Read once more in any case: the last member may have ended before the bell hung.
                while (await mesh.store.batches.read(batch_id, with_results=False)).status != "finished":
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(REREAD_S):
                            await bell.wait()
                    bell.clear()
    return await mesh.store.batches.read(batch_id, with_results=with_results)


async def read(request: Request) -> Response:
    """`GET /v1/batches/ID?wait=N`: progress, and the results in order; `results=false` gives progress alone."""
    mesh: Mesh = request.state.mesh
    query = request.query_params
    parameters.check_names(query, ["wait", "format", "results"])
    format_name = encoders.check_format(query.get("format"))
    with_results = parameters.yes_or_no(query, "results", default=True)
    wait_s = parameters.wait_s(query, mesh.settings.max_wait_s)
    request.scope["waited"] = True
    batch = await wait_for(mesh, request.path_params["batch_id"], wait_s, with_results=with_results)
    headers = {} if batch.status == "finished" else {"retry-after": "1"}
    return encoders.answer_batch(request, batch, format_name, 200, headers)


async def cancel(request: Request) -> Response:
    """`DELETE /v1/batches/ID`: cancels what has not ended; the batch as it is afterwards."""
    mesh: Mesh = request.state.mesh
    parameters.check_names(request.query_params, ["format"])
    format_name = encoders.check_format(request.query_params.get("format"))
    return encoders.answer_batch(request, await mesh.store.batches.cancel(request.path_params["batch_id"]), format_name)


_PROBLEMS = (errors.UnknownJob, errors.ExpiredJob)
_BATCH = Answer(200, "The batch.", Batch)

ROUTES = [
    Endpoint(
        "POST",
        "/v1/batches",
        submit,
        tag="Batches",
        parameters=(MODEL, *OPTIONS, FORMAT, CALLBACK_URL, KEEP_UPLOAD, PREFER, IDEMPOTENCY_KEY),
        takes="pictures",
        answers=(
            Answer(200, "The batch has finished within the time to wait.", Batch, headers=("location", "preference-applied")),
            Answer(202, "The batch is accepted.", Batch, headers=("location", "retry-after")),
        ),
        problems=(
            errors.MalformedMultipart,
            errors.UnknownModel,
            errors.BodyTimeout,
            errors.StillAccepting,
            errors.ExpiredJob,
            errors.TooLarge,
            errors.UnsupportedMedia,
            errors.IdempotencyMismatch,
        ),
        example=Example(query={"model": "small"}, headers={"prefer": "wait=10"}),
    ),
    Endpoint(
        "GET",
        "/v1/batches/{batch_id}",
        read,
        tag="Batches",
        parameters=(
            BATCH_ID,
            WAIT,
            FORMAT,
            Parameter("results", bool, "Whether to list the results, or only tell the progress.", example=True),
        ),
        answers=(_BATCH,),
        problems=_PROBLEMS,
        example=Example(path={"batch_id": "BATCH"}, query={"wait": "10"}),
    ),
    Endpoint(
        "GET",
        "/v1/batches/{batch_id}/deliveries",
        deliveries,
        tag="Batches",
        parameters=(BATCH_ID,),
        answers=(Answer(200, "The tries so far.", Deliveries),),
        problems=(errors.UnknownJob,),
        example=Example(path={"batch_id": "BATCH"}),
    ),
    Endpoint(
        "DELETE",
        "/v1/batches/{batch_id}",
        cancel,
        tag="Batches",
        parameters=(BATCH_ID, FORMAT),
        answers=(_BATCH,),
        problems=_PROBLEMS,
        example=Example(path={"batch_id": "BATCH"}),
    ),
]

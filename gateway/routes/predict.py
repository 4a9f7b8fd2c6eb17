"""The predecessor's endpoints: pictures in and their detections out in one request.

/predict/{model}          /predict_batch/{model}            the model of this name or spelling
/pytorch/predict/{model}  /pytorch/predict_batch/{model}    its sibling on track A, which the registry has as NAME_pytorch
"""

import asyncio
import contextlib
from contextlib import ExitStack
from typing import Any, TypedDict

from starlette.requests import Request
from starlette.responses import Response

from gateway import encoders, parameters, problems, receiving
from gateway.answers import BatchPrediction, BatchPredictions, PredictedObject, Prediction, Reason
from gateway.endpoint import HINTS, MODEL_NAME, OPTIONS, Answer, Endpoint, Example, Takes
from gateway.mesh import Mesh
from gateway.routes.jobs import accept_and_wait, cancel_quietly
from shared import errors
from shared.errors import DeadlinePassed, MeshError, StoreUnavailable, UnknownModel
from shared.messages import Job, JobOptions
from shared.models import Model, Registry
from shared.store.events import Waiter

_IGNORED = ("resize", "max_size")
"""The predecessor's hints on how to shrink a picture; the letterbox does that here, whatever they say."""

PYTORCH = "_pytorch"


async def predict(request: Request) -> Response:
    """`POST /predict/{model}`: detections in the predecessor's form, or the problem that the job ended with."""
    mesh: Mesh = request.state.mesh
    request.scope["waited"] = True
    async with receiving.open_body(request, mesh) as body:
        model, options = _asked(request, mesh)
        upload = await receiving.receive(request, body, mesh)
    wait_s = mesh.settings.max_wait_s
    # Nobody can ask for this job's result later, so its work is not worth more time than its reader has.
    job = await accept_and_wait(request, upload, model, options, wait_s=wait_s, deadline_s=wait_s)
    error = _error_of(job, wait_s)
    if error:
        raise error
    request.scope["stages_ms"] = job.timings_ms
    return encoders.answer(request, Prediction(_objects(job), "success", **_where(model)))


async def predict_batch(request: Request) -> Response:
    """`POST /predict_batch/{model}`: the same for many pictures, in order; one that fails fails alone."""
    mesh: Mesh = request.state.mesh
    request.scope["waited"] = True
    events, wait_s = mesh.store.events, mesh.settings.max_wait_s
    taken: list[tuple[str, Waiter] | MeshError] = []
    with ExitStack() as expected:
        try:
            async with receiving.open_batch_body(request, mesh) as body:
                model, options = _asked(request, mesh)
                pictures = receiving.receive_many(request, body, mesh)
                async with contextlib.aclosing(pictures):
                    async for picture in pictures:
                        if isinstance(picture, MeshError):
                            taken.append(picture)
                            continue
                        waiter = expected.enter_context(events.expect(picture.job_id))
                        try:
                            await picture.accept(
                                model,
                                options,
                                reply_to=events.channel,
                                deadline_s=wait_s,
                                traceparent=request.scope["traceparent"],
                            )
                        except StoreUnavailable:
                            raise
                        except MeshError as error:
                            taken.append(error)
                        else:
                            taken.append((picture.job_id, waiter))
            results = await asyncio.gather(*(_ended(mesh, member, wait_s) for member in taken))
        except BaseException:
            for member in taken:
                if not isinstance(member, MeshError):
                    await cancel_quietly(mesh, member[0])
            raise
    content = [_result(index, result, model) for index, result in enumerate(results)]
    good = sum(result.status == "success" for result in content)
    status = "success" if good == len(content) else "partial" if good else "error"
    answer = BatchPredictions(content, status, len(content), good, len(content) - good, **_where(model))
    return encoders.answer(request, answer)


def _asked(request: Request, mesh: Mesh) -> tuple[Model, JobOptions]:
    query = request.query_params
    parameters.check_names(query, parameters.submit_names(*_IGNORED))
    parameters.shrinking_hints(query)
    find = pytorch_model if request.url.path.startswith("/pytorch/") else Registry.get
    model = find(mesh.registry, request.path_params["model"])
    return model, parameters.job_options(query, model)


def pytorch_model(registry: Registry, name: str) -> Model:
    """The track A sibling of a model, by any spelling of its name.

    Raises:
        UnknownModel: this mesh has none.
    """
    for spelling in (name + PYTORCH, registry.aliases.get(name, name) + PYTORCH, name):
        with contextlib.suppress(UnknownModel):
            model = registry.get(spelling)
            if model.track == "A":
                return model
    raise UnknownModel(
        f"this mesh serves no PyTorch model (track A) for {name!r}; its registry would name it {name + PYTORCH!r}"
    )


async def _ended(mesh: Mesh, member: tuple[str, Waiter] | MeshError, wait_s: float) -> Job | MeshError:
    if isinstance(member, MeshError):
        return member
    job_id, waiter = member
    try:
        job = await waiter.wait(wait_s) or await mesh.store.jobs.read(job_id)
    except MeshError as error:
        return error
    return _error_of(job, wait_s) or job


def _error_of(job: Job, wait_s: float) -> MeshError | None:
    if job.error:
        return problems.of_job(job.error, job.id)
    if job.detections is None:
        return DeadlinePassed(f"no result within {wait_s:g} s; the job is {job.status}", job_id=job.id)
    return None


def _result(index: int, result: Job | MeshError, model: Model) -> BatchPrediction:
    if isinstance(result, MeshError):
        reason = Reason(result.code, result.detail)
        return BatchPrediction(image_index=index, detections=[], num_detections=0, status="error", error=reason)
    found = _objects(result)
    return BatchPrediction(image_index=index, detections=found, num_detections=len(found), status="success", track=model.track)


def _objects(job: Job) -> list[PredictedObject]:
    return [
        PredictedObject(
            x1=found.box.x1,
            y1=found.box.y1,
            x2=found.box.x2,
            y2=found.box.y2,
            confidence=found.confidence,
            class_id=found.class_id,
        )
        for found in job.detections or ()
    ]


class _Where(TypedDict):
    track: str
    preprocessing: str
    nms_location: str


def _where(model: Model) -> _Where:
    return {
        "track": model.track,
        "preprocessing": "gpu" if model.track == "D" else "cpu",
        "nms_location": "cpu" if model.track in "AB" else "gpu",
    }


_OPTIONS = (*OPTIONS, *HINTS)
_PROBLEMS = (
    errors.UnknownModel,
    errors.EmptyBody,
    errors.TooLarge,
    errors.UnsupportedMedia,
    errors.BodyTimeout,
    errors.InferenceFailed,
    errors.DeadlinePassed,
    errors.Internal,
)
_ONE = Answer(200, "The objects found.", Prediction)
_MANY = Answer(200, "What was found in each picture, in order.", BatchPredictions)
_EXAMPLE = Example(path={"model": "small"})
_NO_PYTORCH = Example(path={"model": "small"}, status=404)
"""The built-in registry has no model on track A."""


def _endpoint(path: str, handler: Any, takes: Takes, answer: Answer, example: Example) -> Endpoint:
    return Endpoint(
        "POST",
        path,
        handler,
        tag="Predict",
        parameters=(MODEL_NAME, *_OPTIONS),
        takes=takes,
        answers=(answer,),
        problems=_PROBLEMS,
        example=example,
    )


ROUTES = [
    _endpoint("/predict/{model}", predict, "picture", _ONE, _EXAMPLE),
    _endpoint("/predict_batch/{model}", predict_batch, "pictures", _MANY, _EXAMPLE),
    _endpoint("/pytorch/predict/{model}", predict, "picture", _ONE, _NO_PYTORCH),
    _endpoint("/pytorch/predict_batch/{model}", predict_batch, "pictures", _MANY, _NO_PYTORCH),
]

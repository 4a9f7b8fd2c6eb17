"""`/v1/models`: what the mesh serves, and whether it is ready."""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway import encoders, parameters
from gateway.answers import ModelDescription, ModelList
from gateway.endpoint import MODEL_NAME, Answer, Endpoint, Example
from gateway.mesh import Mesh
from shared import errors
from shared.messages import Heartbeat
from shared.models import Model


async def list_models(request: Request) -> Response:
    """`GET /v1/models`: all models with their state."""
    mesh: Mesh = request.state.mesh
    parameters.check_names(request.query_params, [])
    beats = await _inference_beats(mesh)
    models = [_public(mesh, model, beats) for model in mesh.registry.models.values()]
    return encoders.answer(request, {"models": models, "default": mesh.settings.default_model})


async def show_model(request: Request) -> Response:
    """`GET /v1/models/NAME`: one model, by its name, an alias or NAME@VERSION, with its labels."""
    mesh: Mesh = request.state.mesh
    parameters.check_names(request.query_params, [])
    model = mesh.registry.get(request.path_params["name"])
    return encoders.answer(request, _public(mesh, model, await _inference_beats(mesh)) | {"labels": model.labels})


async def _inference_beats(mesh: Mesh) -> list[Heartbeat]:
    return [beat for beat in await mesh.store.heartbeats.live() if beat.kind == "inference"]


def _public(mesh: Mesh, model: Model, beats: list[Heartbeat]) -> dict[str, Any]:
    # One that was unloaded a moment ago is still in Triton, for the jobs that were accepted before.
    is_loaded = model.name not in mesh.registry.unloaded
    said = [beat.details.get("triton_models", {}).get(model.served_as) for beat in beats]
    return {
        "name": model.name,
        "version": model.version,
        "family": model.family,
        "track": model.track,
        "ready": is_loaded and any(model.served_as in beat.models for beat in beats),
        "loaded": is_loaded,
        # A worker that read the registry a moment earlier may still speak of the model before.
        "triton": next((each for each in said if each and each["model"] == model.triton_model), None),
        "input_width": model.input_width,
        "input_height": model.input_height,
        "nms_location": "worker" if model.head == "yolo" else "model",
        "class_count": len(model.labels),
        "confidence": model.confidence,
        "iou": model.iou,
        "max_detections": model.max_detections,
        "max_batch": model.max_batch,
        "aliases": sorted(alias for alias, name in mesh.registry.aliases.items() if name == model.name),
    }


ROUTES = [
    Endpoint(
        "GET",
        "/v1/models",
        list_models,
        tag="Models",
        answers=(Answer(200, "The models.", ModelList),),
        problems=(errors.InvalidParameter,),
        example=Example(),
    ),
    Endpoint(
        "GET",
        "/v1/models/{name}",
        show_model,
        tag="Models",
        parameters=(msgspec.structs.replace(MODEL_NAME, name="name"),),
        answers=(Answer(200, "The model.", ModelDescription),),
        problems=(errors.UnknownModel,),
        example=Example(path={"name": "small"}),
    ),
]

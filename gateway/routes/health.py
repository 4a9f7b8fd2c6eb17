"""Is it alive, is it ready, how is it: `/livez`, `/readyz`, `/health`, and the Open Inference Protocol's two."""

import os
import time
from typing import Any

import msgspec
import psutil
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from gateway import encoders
from gateway.answers import ConnectionPool, Health, Live, Readiness, Ready
from gateway.endpoint import Answer, Endpoint, Example
from gateway.mesh import Mesh
from shared.errors import MeshError
from shared.messages import Heartbeat

_process = psutil.Process()
_process.cpu_percent()  # the first call only starts the measurement


async def live(request: Request) -> Response:
    """`GET /livez`: this process answers."""
    return encoders.answer(request, {"live": True})


async def ready(request: Request) -> Response:
    """`GET /readyz`: 200 if a job sent now would be done, 503 with what is missing if not."""
    checks = await check_readiness(request.state.mesh)
    is_ready = all(checks.values())
    return encoders.answer(request, {"ready": is_ready, "checks": checks}, 200 if is_ready else 503)


async def check_readiness(mesh: Mesh) -> dict[str, bool]:
    """What must hold: Redis answers, a live worker of each kind, the default model ready in Triton."""
    try:
        beats = await mesh.store.heartbeats.live()
    except MeshError:
        beats, redis = [], False
    else:
        redis = mesh.store.ready.is_set()
    kinds = {beat.kind for beat in beats}
    default = mesh.registry.get(mesh.settings.default_model)
    return {
        "redis": redis,
        "preprocess_worker": "preprocess" in kinds,
        "inference_worker": "inference" in kinds,
        "model": default.name not in mesh.registry.unloaded
        and any(default.served_as in beat.models for beat in beats if beat.kind == "inference"),
    }


async def health(request: Request) -> Response:
    """`GET /health`: everything an operator asks first. Always 200 while the gateway itself answers."""
    mesh: Mesh = request.state.mesh
    checks = await check_readiness(mesh)
    document: dict[str, Any] = {
        "status": "ok" if all(checks.values()) else "degraded",
        "checks": checks,
        "uptime_s": round(time.monotonic() - mesh.started_s, 1),
        "process": {
            "pid": os.getpid(),
            "rss_bytes": _process.memory_info().rss,
            "cpu_percent": _process.cpu_percent(),
        },
        "workers": [],
        "queues": {},
        "models": {},
        "registry_problem": None,
        "keys_problem": None,
        "byte_budget": None,
    }
    beats: list[Heartbeat] = []
    if checks["redis"]:
        try:
            beats = await mesh.store.heartbeats.live()
            document["workers"] = [_worker(beat, mesh.store.clock.now_ms()) for beat in beats]
            document["queues"] = await mesh.store.depths(mesh.registry.served)
            document["byte_budget"] = await mesh.store.budget()
        except MeshError as error:
            document["status"], document["checks"]["redis"] = "degraded", False
            document["error"] = error.detail
    served = {name for beat in beats if beat.kind == "inference" for name in beat.models}
    registry = mesh.registry
    document["models"] = {
        name: {"ready": name not in registry.unloaded and model.served_as in served} for name, model in registry.models.items()
    }
    if mesh.live_registry.problem:
        document["status"], document["registry_problem"] = "degraded", mesh.live_registry.problem
    if mesh.keys and mesh.keys.problem:
        document["status"], document["keys_problem"] = "degraded", mesh.keys.problem
    document["optimizations"] = optimizations(request.scope, beats)
    return encoders.answer(request, document)


def _worker(beat: Heartbeat, now_ms: float) -> dict[str, Any]:
    document = msgspec.structs.asdict(beat)
    del document["beat_at_ms"]
    return document | {"age_ms": round(max(now_ms - beat.beat_at_ms, 0.0), 1)}


def optimizations(scope: Scope, beats: list[Heartbeat]) -> dict[str, Any]:
    """What really is on: said by the processes that have it, not by this file."""

    def said(kind: str, name: str) -> list[Any]:
        return [beat.details[name] for beat in beats if beat.kind == kind and name in beat.details]

    libvips = said("preprocess", "libvips")
    return {
        "msgspec": msgspec.__version__,
        "libvips": libvips[0] if libvips else None,
        "libvips_simd": any(said("preprocess", "libvips_simd")),
        "connection_pooling": any(said("inference", "triton_clients")),
        "middleware": "request_id" in scope,
        "shared_memory": any(kind == "shm" for kind in said("preprocess", "tensor_store")),
    }


async def connection_pool(request: Request) -> Response:
    """`GET /connection_pool_info`: the predecessor's question, answered by the workers that hold the connections."""
    mesh: Mesh = request.state.mesh
    beats = [beat for beat in await mesh.store.heartbeats.live() if beat.kind == "inference"]
    clients = [int(beat.details.get("triton_clients") or 0) for beat in beats]
    return encoders.answer(
        request,
        {
            "shared_client_pool": {
                "active": any(clients),
                "connection_count": sum(clients),
                "triton_urls": [mesh.settings.triton_url],
            },
            "workers": [
                {"name": beat.name, "host": beat.host, "connections": count} for beat, count in zip(beats, clients, strict=True)
            ],
        },
    )


async def protocol_ready(request: Request) -> Response:
    """`GET /v2/health/ready` of the Open Inference Protocol."""
    is_ready = all((await check_readiness(request.state.mesh)).values())
    return encoders.answer(request, {"ready": is_ready}, 200 if is_ready else 503)


def _endpoint(path: str, handler: Any, kind: Any, text: str, *more: Answer) -> Endpoint:
    return Endpoint("GET", path, handler, tag="Mesh", answers=(Answer(200, text, kind), *more), problems=(), example=Example())


ROUTES = [
    _endpoint("/livez", live, Live, "It answers."),
    _endpoint("/readyz", ready, Readiness, "It is ready.", Answer(503, "It is not; `checks` says why.", Readiness)),
    _endpoint("/health", health, Health, "How it is, well or not."),
    _endpoint("/connection_pool_info", connection_pool, ConnectionPool, "The connections."),
    _endpoint("/v2/health/live", live, Live, "It answers."),
    _endpoint("/v2/health/ready", protocol_ready, Ready, "It is ready.", Answer(503, "It is not.", Ready)),
]

"""visionmesh: pictures in, objects out. What people import and run; the services are packages of their own.

    from visionmesh import Client

    with Client() as mesh:
        result = mesh.detect("photo.jpg")
        for found in result:
            print(found.label, found.confidence, found.box)
        result.draw().save("drawn.jpg")

The command line loads this package too, so the clients, and httpx with them, are only imported when they are asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared.messages import Box, Detection
    from visionmesh.async_client import AsyncClient
    from visionmesh.client import Client
    from visionmesh.errors import ClientError, JobError, MeshError, RequestError
    from visionmesh.exchange import Retries
    from visionmesh.gathering import Progress
    from visionmesh.handles import AsyncJobHandle, JobHandle
    from visionmesh.results import Result

_HOMES = {
    "AsyncClient": "visionmesh.async_client",
    "AsyncJobHandle": "visionmesh.handles",
    "Box": "shared.messages",
    "Client": "visionmesh.client",
    "ClientError": "visionmesh.errors",
    "Detection": "shared.messages",
    "JobError": "visionmesh.errors",
    "JobHandle": "visionmesh.handles",
    "MeshError": "visionmesh.errors",
    "Progress": "visionmesh.gathering",
    "RequestError": "visionmesh.errors",
    "Result": "visionmesh.results",
    "Retries": "visionmesh.exchange",
}

__all__ = [
    "AsyncClient",
    "AsyncJobHandle",
    "Box",
    "Client",
    "ClientError",
    "Detection",
    "JobError",
    "JobHandle",
    "MeshError",
    "Progress",
    "RequestError",
    "Result",
    "Retries",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'visionmesh' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)

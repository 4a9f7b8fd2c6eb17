"""The gateway's application: routes, middleware, and what lives as long as the process.

    request ──▶ Door (full?) ──▶ SecurityHeaders ──▶ Request (ID, time, log) ──▶ Access (keys) ──▶ Dispatch ──▶ gateway.routes.*

`create` is called by Granian in each of its worker processes; settings were checked by `gateway.__main__` before.
"""

import asyncio
import contextlib
import gc
import multiprocessing
import os
import secrets
import socket
from collections.abc import AsyncGenerator
from typing import Any, TypedDict

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from gateway import closing, problems
from gateway.access import AccessMiddleware
from gateway.dispatch import DispatchMiddleware
from gateway.door import DoorMiddleware
from gateway.mesh import Mesh
from gateway.middleware import RequestMiddleware
from gateway.routes import batches, documents, events, health, images, jobs, models, predict
from gateway.security_headers import SecurityHeadersMiddleware
from shared import access, errors, log, tracing
from shared.heartbeat import beat_forever
from shared.live_registry import LiveRegistry
from shared.parent import die_with_parent
from shared.settings import Settings, read
from shared.store import Store, connect

GARBAGE = 20_000
"""So many more objects than before are there when the collector looks for cycles; requests make next to none."""


class State(TypedDict):
    """What Starlette puts into `request.state`."""

    mesh: Mesh


ROUTES: list[BaseRoute] = [
    *documents.ROUTES,
    *jobs.ROUTES,
    *events.ROUTES,
    *images.ROUTES,
    *batches.ROUTES,
    *predict.ROUTES,
    *models.ROUTES,
    *health.ROUTES,
]


def create(settings: Settings | None = None) -> Starlette:
    """The ASGI application.

    Raises:
        SettingsError, RegistryError, AccessError: the configuration is wrong.
    """
    settings = settings or read()
    log.configure(settings, "gateway")
    tracing.configure("gateway")
    served = LiveRegistry(settings.models, settings.default_model)
    keys = access.follow(settings.api_keys)
    middleware = [
        Middleware(DoorMiddleware, routes=ROUTES),
        Middleware(SecurityHeadersMiddleware),
        Middleware(RequestMiddleware, slow_ms=settings.slow_request_ms),
        *([Middleware(AccessMiddleware, keys=keys)] if keys else []),
        Middleware(DispatchMiddleware, routes=ROUTES),
    ]

    def status() -> dict[str, Any]:
        return {"metrics_port": settings.metrics_port, "last_error": served.problem or (keys and keys.problem) or None}

    async def look(store: Store) -> None:
        """See by the heartbeats, again and again, whether uploads may be files."""
        while True:
            with contextlib.suppress(errors.MeshError):
                store.upload_files.probe(await store.heartbeats.live())
            await asyncio.sleep(settings.heartbeat_s if store.upload_files.shared else settings.heartbeat_s / 4)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[State]:
        granian = multiprocessing.parent_process()
        if granian and granian.pid:
            die_with_parent(granian.pid)  # its workers would else outlive it and keep the port
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        async with connect(settings) as store, store.events:
            upkeep = [
                asyncio.create_task(beat_forever(store, settings.heartbeat_s, "gateway", name, status)),
                *([asyncio.create_task(look(store))] if settings.upload_folder else []),
            ]
            try:
                # What is there now lives as long as the process: the collector need not look at it with every few requests.
                gc.collect()
                gc.freeze()
                gc.set_threshold(GARBAGE)
                with closing.watch() as told_to_stop:
                    yield {"mesh": Mesh(settings, served, store, name, told_to_stop, keys)}
            finally:
                for task in upkeep:
                    task.cancel()
                await asyncio.gather(*upkeep, return_exceptions=True)
                tracing.stop()

    return Starlette(
        routes=ROUTES,
        lifespan=lifespan,
        middleware=middleware,
        exception_handlers={errors.MeshError: problems.on_mesh_error, HTTPException: problems.on_http_exception},
    )

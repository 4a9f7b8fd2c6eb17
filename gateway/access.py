"""Who asks, and may they: API keys, scopes, rates, and the mesh as the tenant of the key sees it.

    request ─▶ open path? ─▶ key ─▶ scope ─▶ is the job the tenant's? ─▶ rate ─▶ routes, with a mesh bound to the tenant

Only in place when `MESH_API_KEYS` names a file, which is followed while the gateway runs.
What is refused here is refused before its body is read.
"""

import re

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import problems
from gateway.body import Body
from gateway.mesh import Mesh
from shared import access
from shared.access import Access
from shared.errors import BadRequest, Forbidden, MeshError, Unauthorized
from shared.live_file import LiveFile

OPEN = re.compile(r"/|/livez|/readyz|/v2/health/(live|ready)|/openapi\.json|/docs(/.*)?|/static/.*|/problems(/.*)?")
"""What says nothing about anybody's work: probes, the page, the documents."""

ADMIN = re.compile(r"/health|/connection_pool_info")
"""What tells about the mesh itself: its hosts, its queues, the last errors of its workers."""

OWNED = re.compile(r"/v1/(?:jobs|batches)/([^/]+).*")
"""Paths that name somebody's job or batch."""

DRAWING = re.compile(r"/v1/jobs/[^/]+/image")
"""What is read here is made first, by a worker: it counts against the rate like what is sent."""

READING = ("GET", "HEAD", "OPTIONS")

log = structlog.get_logger()


class AccessMiddleware:
    """Plain ASGI middleware; the routes inside find `request.state.mesh` bound to the tenant of the key."""

    def __init__(self, app: ASGIApp, keys: LiveFile[Access]) -> None:
        self.app = app
        self._file = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or OPEN.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        mesh: Mesh = request.state.mesh
        try:
            bound = await self._admit(request, mesh)
        except MeshError as error:
            log.info("request.refused", code=error.code, path=scope["path"], trace_id=scope.get("trace_id", ""))
            headers = {"www-authenticate": 'Bearer realm="visionmesh"'} if isinstance(error, Unauthorized) else {}
            await _drain(request, mesh)
            await problems.answer(error, trace_id=scope.get("trace_id", ""), headers=headers)(scope, receive, send)
            return
        scope["state"] = scope["state"] | {"mesh": bound}
        await self.app(scope, receive, send)

    async def _admit(self, request: Request, mesh: Mesh) -> Mesh:
        """The mesh bound to the tenant of the request's key.

        Raises:
            Unauthorized, Forbidden: there is no good key, or it is not good for this.
            UnknownJob: the job is another tenant's, or nobody's.
            TooManyRequests, StoreUnavailable: see `Rates.take`.
        """
        keys = self._file.now
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        key = keys.find(given.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            raise Unauthorized("send Authorization: Bearer KEY" if not given else "this key is not known here")
        needed = _scope_of(request)
        if not key.allows(needed):
            raise Forbidden(f"this key has not the scope {needed!r}")
        tenant = keys.tenant(key.tenant)
        if owned := OWNED.fullmatch(request.url.path):
            mesh.store.jobs.check_owner(owned[1], tenant)
        if request.method not in READING or DRAWING.fullmatch(request.url.path):
            await mesh.store.rates.take(tenant)
        return mesh.of(tenant)


def _scope_of(request: Request) -> access.Scope:
    if ADMIN.fullmatch(request.url.path):
        return "admin"
    return "read" if request.method in READING else "submit"


async def _drain(request: Request, mesh: Mesh) -> None:
    try:
        body = Body(request, max_bytes=mesh.settings.max_upload_bytes, timeout_s=mesh.settings.body_timeout_s)
    except BadRequest:
        return  # where this body ends nobody can say
    if request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
        await body.drain()

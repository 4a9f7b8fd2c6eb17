"""The door: while the mesh is full, pictures are refused before anything of them is read, at the least cost there is.

    request ──▶ Door ──▶ room, or nothing to be taken ──▶ all other middleware and the routes
                  └────▶ no room: 503 with Retry-After ──▶ what the client has sent already is read and thrown away

It stands in front of everything else, keys included: under overload the mesh can afford neither to look them up nor to
parse what it will not take. An answer is the same that the routes would give, so it is put together here from the same rows.
A client that sent `Expect: 100-continue` has its answer without sending a body, on a connection that then closes: where the
next request begins on it nobody could tell (RFC 9110, 10.1.1). All others are answered first and read afterwards, so that
those who look at the answer while they send can stop, and those who do not are not reset in the middle.
"""

import re
import time
from collections.abc import Sequence
from functools import lru_cache

import msgspec
from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.body import Body
from gateway.endpoint import Endpoint
from gateway.mesh import Mesh
from gateway.middleware import named_by_client, new_request_id, untraced
from gateway.security_headers import ALWAYS, DATA_POLICY, POLICY
from shared import metrics
from shared.errors import Overloaded
from shared.store.admission import BUSY

PATHS = 256
"""For so many paths it is remembered which route, if any, takes pictures there."""

_HEADERS = (
    *ALWAYS,
    (POLICY, DATA_POLICY),
    (b"content-type", b"application/problem+json"),
)
_CLOSE = (b"connection", b"close")
_PROBLEM = msgspec.json.encode(
    {
        "type": f"/problems/{Overloaded.code}",
        "title": Overloaded.title,
        "status": Overloaded.status,
        "detail": BUSY,
        "code": Overloaded.code,
        "trace_id": "",
    }
).removesuffix(b'"}')
_PROBLEM_BYTES = len(_PROBLEM) + 32 + 2
_LENGTH = (b"content-length", str(_PROBLEM_BYTES).encode())


class DoorMiddleware:
    """Plain ASGI middleware around everything; only requests that bring pictures have to do with it."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self.app = app
        taking = [route for route in routes if isinstance(route, Endpoint) and route.takes]
        self._paths: list[tuple[re.Pattern[str], str]] = [(route.path_regex, route.path) for route in taking]
        self._route_of = lru_cache(PATHS)(self._find)
        self._refused = metrics.REFUSALS.labels(Overloaded.code)
        self._counts = {
            route.path: (
                metrics.REQUESTS.labels("POST", route.path, Overloaded.status),
                metrics.REQUEST_DURATION.labels(route.path),
            )
            for route in taking
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http" and scope["method"] == "POST":
            mesh: Mesh = scope["state"]["mesh"]
            route = self._route_of(scope["path"])
            if route and (wait_s := mesh.store.admission.wait_s()):
                await self._refuse(scope, receive, send, route, wait_s, mesh)
                return
        await self.app(scope, receive, send)

    def _find(self, path: str) -> str | None:
        return next((route for pattern, route in self._paths if pattern.match(path)), None)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, route: str, wait_s: int, mesh: Mesh) -> None:
        started_s = time.perf_counter()
        given = dict(scope["headers"])
        request_id, context = named_by_client(scope)
        request_id, context = request_id or new_request_id(), context or untraced()
        has_length, chunked = given.get(b"content-length", b"0") != b"0", b"transfer-encoding" in given
        # With both, where the body ends is anybody's guess, as it is where none may come.
        closes = (has_length and chunked) or given.get(b"expect", b"").lower() == b"100-continue"
        took_ms = f"{(time.perf_counter() - started_s) * 1000:.2f}"
        headers = [
            *_HEADERS,
            _LENGTH,
            (b"retry-after", str(wait_s).encode()),
            (b"x-request-id", request_id.encode()),
            (b"traceparent", context.encode()),
            (b"x-process-time", f"{took_ms}ms".encode()),
            (b"server-timing", f"gateway;dur={took_ms}".encode()),
        ]
        if closes:
            headers.append(_CLOSE)
        await send({"type": "http.response.start", "status": Overloaded.status, "headers": headers})
        await send({"type": "http.response.body", "body": b'%b%b"}' % (_PROBLEM, context[3:35].encode()), "more_body": False})
        self._refused.inc()
        requests, durations = self._counts[route]
        requests.inc()
        durations.observe(time.perf_counter() - started_s)
        if not closes and (has_length or chunked):
            await Body(Request(scope, receive), max_bytes=mesh.settings.max_upload_bytes, timeout_s=0).drain()

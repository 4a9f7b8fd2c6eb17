"""What every answer carries: its request ID, its time, its problem document; and the log of slow requests."""

import re
import secrets
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import problems
from gateway.body import Disconnected
from shared import metrics, tracing
from shared.errors import Internal

_REQUEST_ID = re.compile(r"[\w.:/+=@-]{1,128}")
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

log = structlog.get_logger()


class RequestMiddleware:
    """Plain ASGI middleware around all routes.

    Sets `scope["request_id"]`, `scope["trace_id"]`, `scope["traceparent"]`; reads `scope["waited"]` (the client asked to wait,
    so slow is what it wanted) and `scope["stages_ms"]` (a job's stages, for Server-Timing).
    """

    def __init__(self, app: ASGIApp, slow_ms: float) -> None:
        self.app = app
        self._slow_ms = slow_ms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started_s = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        scope["request_id"] = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        parent = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
        scope["trace_id"] = parent[1] if parent else secrets.token_hex(16)
        scope["traceparent"] = parent[0] if parent else f"00-{scope['trace_id']}-{secrets.token_hex(8)}-00"
        span = tracing.began(f"{scope['method']} request", parent[0] if parent else "", kind="server")
        if span:
            scope["traceparent"] = tracing.traceparent(span)
            scope["trace_id"] = tracing.trace_id(scope["traceparent"])
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                took_ms = (time.perf_counter() - started_s) * 1000
                answer = MutableHeaders(scope=message)
                answer["x-process-time"] = f"{took_ms:.2f}ms"
                answer["x-request-id"] = scope["request_id"]
                answer["traceparent"] = scope["traceparent"]
                stages = "".join(f", {name};dur={ms:.2f}" for name, ms in scope.get("stages_ms", {}).items())
                answer["server-timing"] = f"gateway;dur={took_ms:.2f}{stages}"
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Disconnected:
            log.info("request.disconnected", **self._who(scope))
        except Exception:
            log.exception("request.failed", **self._who(scope))
            if status:
                raise
            problem = problems.answer(Internal("an error of ours; the log has it"), trace_id=scope["trace_id"])
            await problem(scope, receive, send_with_headers)
        took_ms = (time.perf_counter() - started_s) * 1000
        self._count(scope, status, took_ms)
        if span:
            route = getattr(scope.get("route"), "path", "none")
            told = {"http.request.method": scope["method"], "http.route": route, "http.response.status_code": status}
            tracing.ended(span, told | {"mesh.request_id": scope["request_id"]}, error="server error" if status >= 500 else "")
        if took_ms > self._slow_ms and not scope.get("waited"):
            log.warning(
                "request.slow", status=status, took_ms=round(took_ms, 1), stages_ms=scope.get("stages_ms"), **self._who(scope)
            )

    @staticmethod
    def _count(scope: Scope, status: int, took_ms: float) -> None:
        # The route's own path: what a client made up must not become a label.
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        metrics.REQUESTS.labels(method, route, status).inc()
        metrics.REQUEST_DURATION.labels(route).observe(took_ms / 1000)

    @staticmethod
    def _who(scope: Scope) -> dict[str, str]:
        return {
            "method": scope["method"],
            "path": scope["path"],
            "request_id": scope["request_id"],
            "trace_id": scope["trace_id"],
        }

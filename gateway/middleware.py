"""What every answer carries: its request ID, its time, its problem document; and the log of slow requests."""

import random
import re
import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import problems
from gateway.body import Disconnected
from shared import metrics, tracing
from shared.errors import Internal

_REQUEST_ID = re.compile(r"[\w.:/+=@-]{1,128}")
_CONTEXT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_UNTRACED = frozenset({"/livez", "/readyz", "/health", "/v2/health/live", "/v2/health/ready"})
"""Asked every few seconds by machines; traces of them would bury the others."""

SERVER_ERROR = 500

log = structlog.get_logger()


class RequestMiddleware:
    """Plain ASGI middleware around all routes.

    Sets `scope["request_id"]`, `scope["trace_id"]`, `scope["traceparent"]`; reads `scope["waited"]` (the client asked to wait,
    so slow is what it wanted), `scope["stages_ms"]` (a job's stages, for Server-Timing) and `scope["spent_ms"]` (where the
    time of this request went, for the log).
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
        given, parent = named_by_client(scope)
        scope["request_id"] = given or new_request_id()
        span = self._span(scope, parent)
        # Without traces of our own the client's context goes on as it came, or one that says that nothing is recorded.
        scope["traceparent"] = span.traceparent or untraced()
        scope["trace_id"] = scope["traceparent"][3:35]
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                took_ms = (time.perf_counter() - started_s) * 1000
                stages = "".join([f", {name};dur={ms:.2f}" for name, ms in scope.get("stages_ms", {}).items()])
                message["headers"] = [
                    *message["headers"],
                    (b"x-process-time", b"%.2fms" % took_ms),
                    (b"x-request-id", scope["request_id"].encode("latin-1")),
                    (b"traceparent", scope["traceparent"].encode()),
                    (b"server-timing", f"gateway;dur={took_ms:.2f}{stages}".encode()),
                ]
            await send(message)

        structlog.contextvars.bind_contextvars(request_id=scope["request_id"], trace_id=scope["trace_id"])
        try:
            await self.app(scope, receive, send_with_headers)
        except Disconnected:
            log.info("request.disconnected", **self._who(scope))
        except Exception:
            log.exception("request.failed", **self._who(scope))
            if status:
                span.fail("failed in the middle of an answer")
                span.end()
                raise
            problem = problems.answer(Internal("an error of ours; the log has it"), trace_id=scope["trace_id"])
            await problem(scope, receive, send_with_headers)
        took_ms = (time.perf_counter() - started_s) * 1000
        self._count(scope, status, took_ms)
        if tracing.is_on():
            span.rename(f"{scope['method']} {_route(scope)}")
            span.set({"http.response.status_code": status})
            if status >= SERVER_ERROR:
                span.fail(f"status {status}")
            span.end()
        if took_ms > self._slow_ms and not scope.get("waited"):
            spent_ms = {name: round(ms, 1) for name, ms in scope.get("spent_ms", {}).items()}
            stages_ms = scope.get("stages_ms")
            log.warning(
                "request.slow", status=status, took_ms=round(took_ms, 1), spent_ms=spent_ms, stages_ms=stages_ms,
                **self._who(scope),
            )  # fmt: skip

    @staticmethod
    def _span(scope: Scope, parent: str) -> tracing.Span:
        if not tracing.is_on() or scope["path"] in _UNTRACED:
            return tracing.Span(parent)
        attributes = {"http.request.method": scope["method"], "url.path": scope["path"], "mesh.request_id": scope["request_id"]}
        return tracing.start(scope["method"], parent, attributes, kind="server")

    @staticmethod
    def _count(scope: Scope, status: int, took_ms: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        metrics.requested(method, _route(scope), status, took_ms)

    @staticmethod
    def _who(scope: Scope) -> dict[str, str]:
        return {
            "method": scope["method"],
            "path": scope["path"],
            "request_id": scope["request_id"],
            "trace_id": scope["trace_id"],
        }


def _route(scope: Scope) -> str:
    """The route's own path: what a client made up must not become a label."""
    return getattr(scope.get("route"), "path", "none")


def named_by_client(scope: Scope) -> tuple[str, str]:
    """The request ID and the traceparent that the client gave, each empty where there is none that can be taken."""
    request_id, traceparent = "", ""
    for name, value in scope["headers"]:  # names are lower-case there (ASGI 3.0)
        if name == b"x-request-id" and not request_id:
            request_id = value.decode("latin-1")
        elif name == b"traceparent" and not traceparent:
            traceparent = value.decode("latin-1")
    return (
        request_id if _REQUEST_ID.fullmatch(request_id) else "",
        traceparent if _CONTEXT.fullmatch(traceparent) else "",
    )


def new_request_id() -> str:
    """A request ID for a client that gave none."""
    return f"{random.getrandbits(64):016x}"


def untraced() -> str:
    """A new context that says that nothing is recorded."""
    digits = f"{random.getrandbits(192):048x}"
    return f"00-{digits[:32]}-{digits[32:]}-00"

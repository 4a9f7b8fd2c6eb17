"""Traces by OpenTelemetry; the only code that knows it, and it is imported only where an endpoint is configured.

    gateway            preprocess worker        inference worker
    POST /v1/jobs
      ├ upload
      └ accept ─┬──── wait preprocess
                ├──── preprocess
                ├────────────────────────────── wait inference
                ├────────────────────────────── inference ─ ─link─ ─▶ batch
                └────────────────────────────── batch ─┬─ triton   (a child of its first job, linked to all of them)
                                                       └─ finish

The context travels as a W3C `traceparent`: in the job's hash through Redis, and as a gRPC header to Triton. Everything is set
by the standard `OTEL_*` variables. Without `OTEL_EXPORTER_OTLP_ENDPOINT` a span is an object that passes its parent on.
"""

import contextvars
import logging
import os
import re
import threading
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, Literal, Self

import structlog

from shared.messages import Ticket
from shared.settings import SettingsError

if TYPE_CHECKING:
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import SpanContext

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Value = str | int | float | bool | list[str]

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL: Final = "http/protobuf"
STOP_WITHIN_S = 2.0
"""How long a stopping process may take to send its last spans; a collector that is away must not hold it."""

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")

_current: contextvars.ContextVar[str] = contextvars.ContextVar("traceparent", default="")


class Span:
    """A span that is not recorded: it passes its parent on. Use as a context manager, or call `end`."""

    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent
        """The context for whatever is done on behalf of this span; empty if there is none."""
        self._token: contextvars.Token[str] | None = None

    def __enter__(self) -> Self:
        self._token = _current.set(self.traceparent)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._token:
            _current.reset(self._token)
        if error is not None:
            self.fail(error)
        self.end()

    def rename(self, name: str) -> None:
        """Give a better name, known only later."""

    def set(self, attributes: Mapping[str, Value]) -> None:
        """Add attributes."""

    def fail(self, error: BaseException | str) -> None:
        """Say that what the span stands for failed, and why."""

    def end(self) -> None:
        """End the span now."""


_tracer: "_Tracer | None" = None


def configure(service: str) -> None:
    """Turn traces on if the environment names an endpoint; `service` is the name unless `OTEL_SERVICE_NAME` says another.

    Raises:
        SettingsError: an endpoint is named, but the extra `otel` is not installed, or the protocol is not http/protobuf.
    """
    global _tracer
    endpoint = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    is_off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    if endpoint is None or is_off or _tracer is not None:
        return
    for name in PROTOCOLS:
        if (asked := os.environ.get(name, "")) not in ("", PROTOCOL):
            raise SettingsError(f"{name}={asked!r} is wrong: traces are sent by {PROTOCOL} only")
    try:
        _tracer = _Tracer(service)
    except ImportError as error:
        raise SettingsError(f"{endpoint} is set, but the extra `otel` is not installed: {error}") from None


def is_on() -> bool:
    """Whether spans are recorded here."""
    return _tracer is not None


def stop() -> None:
    """Send what is left, for at most `STOP_WITHIN_S`, and turn traces off."""
    global _tracer
    tracer, _tracer = _tracer, None
    if tracer:
        sender = threading.Thread(target=tracer.stop, daemon=True)
        sender.start()
        sender.join(STOP_WITHIN_S)


def start(
    name: str,
    parent: str,
    attributes: Mapping[str, Value] | None = None,
    *,
    kind: Kind = "internal",
    links: Iterable[str] = (),
    ago_ms: float = 0.0,
) -> Span:
    """Start a span. `parent` and `links` are traceparents, an empty parent begins a trace; it began `ago_ms` ago."""
    if _tracer is None:
        return Span(parent)
    return _tracer.start(name, parent, kind, links, attributes or {}, ago_ms)


def past(
    name: str,
    parent: str,
    attributes: Mapping[str, Value],
    *,
    began_ago_ms: float,
    ended_ago_ms: float = 0.0,
    links: Iterable[str] = (),
    error: str | None = None,
) -> None:
    """Record what is over. Times are told as ages, so that Redis' clock and this host's need not agree."""
    if _tracer is not None:
        span = _tracer.start(name, parent, "internal", links, attributes, began_ago_ms)
        if error is not None:
            span.fail(error)
        span.end_at(time.time_ns() - int(ended_ago_ms * 1e6))


def of(ticket: Ticket) -> dict[str, Value]:
    """The attributes of whatever is done to a job."""
    return {
        "mesh.job_id": ticket.id,
        "mesh.model": ticket.model,
        "mesh.track": ticket.track,
        "mesh.attempt": ticket.attempts,
        "mesh.fence": ticket.fence,
    }


def begin(name: str) -> str:
    """Begin a trace with a span of no length; returns its traceparent, or nothing if traces are off."""
    span = start(name, "")
    span.end()
    return span.traceparent


def current() -> str:
    """The traceparent of the span entered last; empty if there is none."""
    return _current.get()


def headers() -> dict[str, str] | None:
    """What tells a server that is called now about the span entered last."""
    traceparent = _current.get()
    return {"traceparent": traceparent} if traceparent else None


def trace_id(traceparent: str) -> str:
    """The trace's ID, 32 hexadecimal digits; empty if there is none."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return found[1] if found else ""


class _Recorded(Span):
    """A span that is recorded, or would be if its trace were sampled."""

    def __init__(self, span: "OtelSpan") -> None:
        own = span.get_span_context()
        super().__init__(f"00-{own.trace_id:032x}-{own.span_id:016x}-{int(own.trace_flags):02x}")
        self._span = span

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def set(self, attributes: Mapping[str, Value]) -> None:
        self._span.set_attributes(attributes)

    def fail(self, error: BaseException | str) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._span.set_status(Status(StatusCode.ERROR, str(error) or type(error).__name__))

    def end(self) -> None:
        self._span.end()

    def end_at(self, epoch_ns: int) -> None:
        """End the span at this host's time."""
        self._span.end(epoch_ns)


class _Tracer:
    """Makes spans, and sends them from a thread of its own."""

    def __init__(self, service: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        logger = logging.getLogger("opentelemetry")
        logger.handlers = [_ToOurLog()]
        logger.propagate = False
        is_named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        named = {} if is_named else {"service.name": f"visionmesh-{service.removesuffix('_worker')}"}
        self._provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("visionmesh")

    def start(
        self, name: str, parent: str, kind: Kind, links: Iterable[str], attributes: Mapping[str, Value], ago_ms: float
    ) -> _Recorded:
        """See the function `start`."""
        from opentelemetry import trace

        # Never the ambient context: parents are told, and none begins a trace.
        context = trace.NonRecordingSpan(_context(parent) or trace.INVALID_SPAN_CONTEXT)
        span = self._tracer.start_span(
            name,
            context=trace.set_span_in_context(context),
            kind=trace.SpanKind[kind.upper()],
            links=[trace.Link(linked) for link in links if (linked := _context(link))],
            attributes=attributes,
            start_time=time.time_ns() - int(ago_ms * 1e6),
        )
        return _Recorded(span)

    def stop(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _context(traceparent: str) -> "SpanContext | None":
    from opentelemetry.trace import SpanContext, TraceFlags

    found = _TRACEPARENT.fullmatch(traceparent)
    if not found:
        return None
    context = SpanContext(int(found[1], 16), int(found[2], 16), is_remote=True, trace_flags=TraceFlags(int(found[3], 16) & 1))
    return context if context.is_valid else None


class _ToOurLog(logging.Handler):
    """What the library complains of, as lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(record.levelno, "traces.trouble", detail=record.getMessage())

"""One trace from upload to finish, by OpenTelemetry, where the standard `OTEL_*` variables ask for it.

    client's traceparent ─▶ request (gateway) ─▶ job in Redis ─▶ preprocess ─▶ inference ─ ─link─ ─▶ batch
                                                                                 └─▶ triton

Spans are recorded once they are over, from times that were measured anyway, so nothing on the way holds one. A batch is a
trace of its own that links to its members, and each member links to it. Without `OTEL_EXPORTER_OTLP_ENDPOINT` (or the
variable for traces alone) nothing of OpenTelemetry is imported.
"""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

Attributes = Mapping[str, str | int | float | bool]

FLUSH_MS = 2000

_tracer: Any = None
_provider: Any = None


def configure(service: str) -> None:
    """Set up tracing of this process, if the environment asks for it. `OTEL_SERVICE_NAME` wins over `service`."""
    global _tracer, _provider
    if _tracer is not None or not is_wanted():
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = os.environ.get("OTEL_SERVICE_NAME") or f"visionmesh-{service}"
    _provider = TracerProvider(resource=Resource.create({"service.name": name}))
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = _provider.get_tracer("visionmesh")


def is_wanted() -> bool:
    """Whether the environment asks for traces."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return bool(os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))


def is_on() -> bool:
    """Whether spans are recorded."""
    return _tracer is not None


def close() -> None:
    """Send what is left."""
    global _tracer, _provider
    if _provider is not None:
        _provider.force_flush(FLUSH_MS)
        _provider.shutdown()
    _tracer = _provider = None


def began(name: str, parent: str = "", *, kind: str = "internal", links: Sequence[str] = (), ago_ms: float = 0.0) -> Any:
    """A span that began `ago_ms` ago; `None` while tracing is off. `parent` and `links` are traceparents."""
    if _tracer is None:
        return None
    from opentelemetry.trace import Link, SpanKind, set_span_in_context

    context = _remote(parent)
    return _tracer.start_span(
        name,
        context=set_span_in_context(context) if context else None,
        kind=SpanKind[kind.upper()],
        links=[Link(there.get_span_context()) for there in map(_remote, links) if there],
        start_time=time.time_ns() - int(ago_ms * 1e6),
    )


def ended(span: Any, attributes: Attributes | None = None, *, after_ms: float | None = None, error: str = "") -> None:
    """End a span now, or `after_ms` after it began."""
    if span is None:
        return
    span.set_attributes(attributes or {})
    if error:
        from opentelemetry.trace import Status, StatusCode

        span.set_status(Status(StatusCode.ERROR, error))
    span.end(span.start_time + int(after_ms * 1e6) if after_ms is not None else None)


def traceparent(span: Any) -> str:
    """A span as W3C writes it, to be sent along; empty while tracing is off."""
    if span is None:
        return ""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def trace_id(parent: str) -> str:
    """The trace's ID in a traceparent, for logs; empty if there is none."""
    return parent[3:35] if len(parent) == 55 else ""


def _remote(parent: str) -> Any:
    if len(parent) != 55:
        return None
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

    # Sampled or not is the client's to say, but a client that only carries an ID (as we do for it) says nothing.
    return NonRecordingSpan(
        SpanContext(int(parent[3:35], 16), int(parent[36:52], 16), is_remote=True, trace_flags=TraceFlags(1))
    )

"""A collector of traces: a real HTTP server that takes OTLP as protobuf, which is what the mesh's processes send to it."""

import gzip
import threading
import time
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

SAMPLED = 1


class Collected(NamedTuple):
    """One span as it came. IDs are hexadecimal, times nanoseconds; `links` are the IDs of the spans linked to."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    began_ns: int
    ended_ns: int
    attributes: dict[str, Any]
    links: list[str]
    error: str | None


class Collector:
    """Listens on `url` from entering to leaving the block."""

    def __init__(self) -> None:
        self._spans: list[Collected] = []
        self._came = threading.Condition()
        self.paths: set[str] = set()
        self.trouble: list[str] = []
        """What came that is no OTLP."""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                try:
                    assert self.headers["content-type"] == "application/x-protobuf", self.headers["content-type"]
                    collector._take(self.path, ExportTraceServiceRequest.FromString(body))
                except Exception as error:  # noqa: BLE001 - told by the test's own assertion
                    collector.trouble.append(repr(error))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def trace(self, trace_id: str, names: Iterable[str], within_s: float = 15) -> dict[str, Collected]:
        """The spans of a trace by name, once all of `names` have come."""
        deadline_s = time.monotonic() + within_s
        with self._came:
            while True:
                found = {span.name: span for span in self._spans if span.trace_id == trace_id}
                if set(names) <= found.keys():
                    return found
                left_s = deadline_s - time.monotonic()
                assert left_s > 0, f"only {sorted(found)} came"
                self._came.wait(left_s)

    def spans(self) -> list[Collected]:
        with self._came:
            return list(self._spans)

    def _take(self, path: str, request: ExportTraceServiceRequest) -> None:
        with self._came:
            self.paths.add(path)
            for resource in request.resource_spans:
                service = _plain(resource.resource.attributes)["service.name"]
                for scope in resource.scope_spans:
                    self._spans += [_collected(service, span) for span in scope.spans]
            self._came.notify_all()


def _collected(service: str, span: Any) -> Collected:
    return Collected(
        service, span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), span.kind,
        span.start_time_unix_nano, span.end_time_unix_nano, _plain(span.attributes),
        [link.span_id.hex() for link in span.links], span.status.message if span.status.code == 2 else None,
    )  # fmt: skip


def _plain(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}

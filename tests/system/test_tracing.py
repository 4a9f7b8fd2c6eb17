"""One trace from the upload to the finish, as a real collector receives it."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from deploy.local import ports
from deploy.local.supervisor import LocalMesh, Options
from tests.conftest import PHOTOS, Background, running_mesh

CAT = (PHOTOS / "chelsea.png").read_bytes()
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """An OTLP endpoint over HTTP that keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        self._came = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    import gzip

                    body = gzip.decompress(body)
                collector.take(self.path, ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def take(self, path: str, request: ExportTraceServiceRequest) -> None:
        assert path == "/v1/traces"
        with self._came:
            for resource in request.resource_spans:
                service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
                self.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]
            self._came.notify_all()

    def named(self, *names: str) -> dict[str, tuple[str, Span]]:
        """The last span of each name, waiting for all."""
        with self._came:
            assert self._came.wait_for(lambda: set(names) <= {span.name for _, span in self.spans}, timeout=20), self.spans
            return {span.name: (service, span) for service, span in self.spans}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()
    thread.join()


@pytest.fixture
def traced(background: Background, mesh: LocalMesh, collector: Collector) -> Iterator[LocalMesh]:
    environ = {"MESH_HEARTBEAT_S": "0.5", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with running_mesh(background, Options(port=ports.free(), environ=environ, triton_url=mesh.triton_url)) as own:
        yield own


def test_one_trace_from_the_client_through_redis_and_the_batch_to_the_end(traced: LocalMesh, collector: Collector) -> None:
    headers = {"content-type": "image/png", "prefer": "wait=25", "traceparent": f"00-{TRACE}-{PARENT}-01"}
    answer = httpx.post(f"{traced.url}/v1/jobs", content=CAT, headers=headers, timeout=30)
    assert answer.json()["status"] == "succeeded"
    assert answer.headers["traceparent"].split("-")[1] == TRACE
    found = collector.named("POST request", "preprocess", "inference", "triton", "batch")
    services = {name: service for name, (service, _) in found.items()}
    assert services["POST request"] == "visionmesh-gateway"
    assert services["preprocess"] == "visionmesh-preprocess_worker"
    assert services["batch"] == "visionmesh-inference_worker"
    request, preprocess, inference, triton, batch = (
        found[name][1] for name in ("POST request", "preprocess", "inference", "triton", "batch")
    )
    assert {span.trace_id.hex() for span in (request, preprocess, inference, triton)} == {TRACE}
    assert request.parent_span_id.hex() == PARENT
    assert preprocess.parent_span_id == inference.parent_span_id == request.span_id
    assert triton.parent_span_id == inference.span_id
    assert batch.trace_id != request.trace_id
    assert [link.span_id for link in batch.links] == [request.span_id]
    assert [link.span_id for link in inference.links] == [batch.span_id]
    for span in (request, preprocess, inference, triton, batch):
        assert 0 <= span.start_time_unix_nano < span.end_time_unix_nano
    assert request.start_time_unix_nano <= preprocess.start_time_unix_nano <= inference.start_time_unix_nano
    told = {attribute.key: attribute.value for attribute in inference.attributes}
    assert told["mesh.job"].string_value == answer.json()["id"]
    assert told["mesh.batch_size"].int_value == 1


@pytest.mark.parametrize(("environ", "is_on"), [({}, False), ({"OTEL_SDK_DISABLED": "true"}, False), ({"X": "1"}, True)])
def test_nothing_of_opentelemetry_is_imported_while_it_is_off(environ: dict[str, str], is_on: bool) -> None:
    code = """
import sys
from shared import tracing, log
from shared.settings import read
import gateway.middleware, shared.store.jobs
log.configure(read(dict()), "gateway")
span = tracing.began("x", "00-{}-{}-01")
tracing.ended(span)
assert tracing.is_on() == ({!r} == "on"), tracing.is_on()
assert any(name.startswith("opentelemetry") for name in sys.modules) == tracing.is_on()
""".format(TRACE, PARENT, "on" if is_on else "off")
    endpoint = {} if not environ else {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_EXPORT_TIMEOUT": "1"}
    subprocess.run(
        [sys.executable, "-c", code + "import os; os._exit(0)"], check=True, env={"PATH": "/bin", **endpoint, **environ}
    )

"""Traces of a real mesh, taken by a real OTLP endpoint: one from the upload to the finish, whichever process did what."""

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import pytest

from deploy.local import ports
from deploy.local.supervisor import LocalMesh, Options
from tests.collector import Collected, Collector
from tests.conftest import PHOTOS, Background, running_mesh

CAT = (PHOTOS / "chelsea.png").read_bytes()
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SPANS = {
    "POST /v1/jobs": ("visionmesh-gateway", "client"),
    "upload": ("visionmesh-gateway", "POST /v1/jobs"),
    "accept": ("visionmesh-gateway", "POST /v1/jobs"),
    "wait preprocess": ("visionmesh-preprocess", "accept"),
    "preprocess": ("visionmesh-preprocess", "accept"),
    "wait inference": ("visionmesh-inference", "accept"),
    "inference": ("visionmesh-inference", "accept"),
    "batch": ("visionmesh-inference", "accept"),
    "triton": ("visionmesh-inference", "batch"),
    "finish": ("visionmesh-inference", "batch"),
}
"""The spans of a job that succeeds: which service sends them, and whose children they are."""


class Relay(grpc.GenericRpcHandler):
    """Stands before the real Triton, hands every call on as it is, and remembers its traceparent."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._channel: grpc.aio.Channel | None = None
        self._server: grpc.aio.Server | None = None
        self.seen: dict[str, list[str]] = {}
        self.url = ""

    async def start(self) -> None:
        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.aio.insecure_channel(self._target, options=unlimited)
        self._server = grpc.aio.server(options=unlimited)
        self._server.add_generic_rpc_handlers((self,))
        self.url = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()

    async def stop(self) -> None:
        if self._server and self._channel:
            await self._server.stop(0)
            await self._channel.close()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = handler_call_details.method
        told = dict(handler_call_details.invocation_metadata).get("traceparent")
        if told:
            self.seen.setdefault(method.rpartition("/")[2], []).append(str(told))

        async def handle(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            try:
                return await self._channel.unary_unary(method)(request, timeout=10)
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details())

        return grpc.unary_unary_rpc_method_handler(handle)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector
    assert not collector.trouble


@pytest.fixture(scope="module")
def relay(background: Background, triton_url: str) -> Iterator[Relay]:
    relay = Relay(triton_url)
    background.run(relay.start())
    yield relay
    background.run(relay.stop())


@pytest.fixture(scope="module")
def traced(background: Background, relay: Relay, collector: Collector) -> Iterator[LocalMesh]:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50", "MESH_SLOW_STAGE_MS": "0.001"}
    environ |= {"MESH_SLOW_REQUEST_MS": "0", "MESH_INFERENCE_SLOTS": "1"}
    options = Options(port=ports.free(), environ=environ, triton_url=relay.url)
    with running_mesh(background, options) as mesh:
        yield mesh


def send(mesh: LocalMesh, body: bytes, traceparent: str | None, wait: bool = True) -> httpx.Response:
    headers = {"content-type": "image/png", **({"prefer": "wait=25"} if wait else {})}
    headers |= {"traceparent": traceparent} if traceparent else {}
    return httpx.post(f"{mesh.url}/v1/jobs", content=body, headers=headers, timeout=30)


def parents(spans: dict[str, Collected]) -> dict[str, tuple[str, str]]:
    names = {span.span_id: name for name, span in spans.items()} | {CALLER: "client"}
    return {name: (span.service, names.get(span.parent_id, "")) for name, span in spans.items()}


def test_one_trace_from_the_upload_to_the_finish(traced: LocalMesh, collector: Collector, relay: Relay) -> None:
    answer = send(traced, CAT, f"00-{TRACE}-{CALLER}-01")
    job = answer.json()
    assert job["status"] == "succeeded"
    spans = collector.trace(TRACE, SPANS)
    assert parents(spans) == SPANS
    assert collector.paths == {"/v1/traces"}
    root = spans["POST /v1/jobs"]
    assert answer.headers["traceparent"] == f"00-{TRACE}-{root.span_id}-01"
    assert root.attributes["http.response.status_code"] == 200
    assert spans["upload"].attributes["mesh.upload_bytes"] == len(CAT)
    for name in ("upload", "accept", "wait preprocess", "preprocess", "wait inference", "inference"):
        has = spans[name].attributes
        assert (has["mesh.job_id"], has["mesh.model"], has["mesh.track"]) == (job["id"], "small", "B"), name
    assert spans["preprocess"].attributes["mesh.image"] == "451x300 png"
    assert spans["batch"].attributes["mesh.batch_size"] == 1
    assert spans["batch"].links == [spans["accept"].span_id]
    assert spans["inference"].links == [spans["batch"].span_id]
    assert not any(span.error for span in spans.values())
    assert f"00-{TRACE}-{spans['triton'].span_id}-01" in relay.seen["ModelInfer"]
    for earlier, later in (("upload", "preprocess"), ("wait preprocess", "wait inference"), ("preprocess", "batch")):
        assert spans[earlier].began_ns <= spans[later].began_ns, (earlier, later)
    for span in spans.values():
        assert span.began_ns <= span.ended_ns
        assert span.ended_ns - span.began_ns < 30e9


def test_a_batch_is_linked_to_each_of_its_jobs(traced: LocalMesh, collector: Collector) -> None:
    traces = [f"{number:032x}" for number in range(1, 17)]
    with ThreadPoolExecutor(16) as pool:
        jobs = list(pool.map(lambda trace: send(traced, CAT, f"00-{trace}-{CALLER}-01").json(), traces))
    assert max(job["batch_size"] for job in jobs) > 1, "one slot and sixteen at once make batches"
    for trace, job in zip(traces, jobs, strict=True):
        spans = collector.trace(trace, ["accept", "inference"])
        assert spans["inference"].attributes["mesh.batch_size"] == job["batch_size"]
        (batch,) = [span for span in collector.spans() if span.span_id in spans["inference"].links]
        assert batch.name == "batch"
        assert batch.attributes["mesh.batch_size"] == job["batch_size"] == len(batch.links)
        assert spans["accept"].span_id in batch.links


def test_a_failed_job_says_so_in_its_trace(traced: LocalMesh, collector: Collector) -> None:
    trace = "f" * 32
    job = send(traced, CAT[:2000], f"00-{trace}-{CALLER}-01").json()
    assert job["status"] == "failed"
    spans = collector.trace(trace, ["POST /v1/jobs", "preprocess"])
    assert spans["preprocess"].error is not None
    assert spans["preprocess"].error.startswith("corrupt-image: ")
    assert spans["POST /v1/jobs"].error is None


def test_a_trace_that_the_caller_does_not_sample_is_passed_on_but_not_recorded(
    traced: LocalMesh, collector: Collector, relay: Relay
) -> None:
    quiet, loud = "a" * 32, "b" * 32
    answer = send(traced, CAT, f"00-{quiet}-{CALLER}-00")
    assert answer.headers["traceparent"].startswith(f"00-{quiet}-")
    assert answer.headers["traceparent"].endswith("-00")
    assert any(told.startswith(f"00-{quiet}-") and told.endswith("-00") for told in relay.seen["ModelInfer"])
    send(traced, CAT, f"00-{loud}-{CALLER}-01")
    collector.trace(loud, SPANS)
    assert not [span for span in collector.spans() if span.trace_id == quiet]


def test_a_request_without_a_trace_begins_one(traced: LocalMesh, collector: Collector) -> None:
    answer = send(traced, CAT, None)
    trace = answer.headers["traceparent"].split("-")[1]
    assert collector.trace(trace, SPANS)["POST /v1/jobs"].parent_id == ""
    httpx.get(f"{traced.url}/readyz")
    assert not [span for span in collector.spans() if "readyz" in span.name]


def test_logs_name_job_and_trace_and_where_the_time_went(traced: LocalMesh) -> None:
    trace = "c" * 32
    failed = send(traced, CAT[:2000], f"00-{trace}-{CALLER}-01").json()
    assert send(traced, CAT, f"00-{trace}-{CALLER}-01", wait=False).status_code == 202

    def line(name: str, is_it: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first such line of a log, which may be written after the answer was sent."""
        deadline_s = time.monotonic() + 10
        while True:
            text = (traced.folder / f"{name}.log").read_text("utf-8")
            found = [said for said in map(json.loads, re.findall(r"^\{.*\}$", text, re.MULTILINE)) if is_it(said)]
            if found or time.monotonic() > deadline_s:
                assert found, text
                return found[0]
            time.sleep(0.05)

    said = line("preprocess", lambda said: said["event"] == "job.failed" and said["job_id"] == failed["id"])
    assert (said["trace_id"], said["service"]) == (trace, "preprocess_worker")
    slow = line("gateway", lambda said: said["event"] == "request.slow" and said.get("trace_id") == trace)
    assert 0 <= slow["spent_ms"]["upload"] <= slow["took_ms"]
    job = line("inference", lambda said: said["event"] == "job.slow")
    assert job["timings_ms"][job["slowest"]] == job["slowest_ms"] > 0.001
    assert len(job["trace_id"]) == 32
    assert job["job_id"]

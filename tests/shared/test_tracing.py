"""Traces are off without an endpoint, and then opentelemetry is not even imported; what is configured wrongly is told."""

import os
import subprocess
import sys
import time

import pytest

from shared import tracing
from shared.settings import SettingsError
from tests.collector import SAMPLED, Collector

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

EVERY_SERVICE = """
import sys
import gateway.__main__, gateway.app, gateway.tasks
import preprocess_worker.__main__, inference_worker.__main__, inference_worker.worker
from shared import tracing
tracing.configure("gateway")
with tracing.start("a", sys.argv[1], {"b": 1}) as span:
    tracing.past("c", span.traceparent, {}, began_ago_ms=5)
    assert tracing.headers() == {"traceparent": sys.argv[1]}
tracing.stop()
print(sorted(name for name in sys.modules if name.partition(".")[0] == "opentelemetry"))
"""


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    yield
    tracing.stop()


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_SERVICE_NAME": "mesh"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"},
    ],
    ids=["nothing set", "only a name", "empty endpoint", "disabled", "no exporter"],
)
def test_what_leaves_traces_off(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    tracing.configure("gateway")
    assert not tracing.is_on()


def test_off_means_not_even_imported_by_any_service() -> None:
    done = subprocess.run([sys.executable, "-c", EVERY_SERVICE, PARENT], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_without_traces_the_callers_context_goes_on() -> None:
    assert tracing.headers() is None
    with tracing.start("outer", PARENT) as span:
        assert span.traceparent == tracing.current() == PARENT
        with tracing.start("inner", ""):
            assert tracing.headers() is None
        assert tracing.headers() == {"traceparent": PARENT}
    assert tracing.current() == ""
    assert tracing.begin("anything") == ""


@pytest.mark.parametrize(
    ("traceparent", "trace"),
    [(PARENT, PARENT[3:35]), ("", ""), ("00-xyz", ""), (PARENT.upper(), ""), (PARENT + "-more", "")],
)
def test_the_trace_of_a_traceparent(traceparent: str, trace: str) -> None:
    assert tracing.trace_id(traceparent) == trace


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"])
def test_another_protocol_is_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(name, "grpc")
    with pytest.raises(SettingsError, match=rf"^{name}='grpc' is wrong: .*http/protobuf"):
        tracing.configure("gateway")
    assert not tracing.is_on()


def test_an_endpoint_without_the_extra_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:9/v1/traces")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)  # as if it were not installed
    with pytest.raises(SettingsError, match=r"^OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set, .* extra `otel` is not"):
        tracing.configure("gateway")


def test_the_standard_variables_name_the_service_and_set_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.url}/here")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "of-mine")
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
        tracing.configure("gateway")
        assert int(tracing.begin("root")[-2:], 16) & SAMPLED == 0
        with pytest.raises(ValueError, match="no"), tracing.start("child", PARENT, {"n": 3}, links=[PARENT, "rubbish"]):
            raise ValueError("no")
        tracing.past("earlier", PARENT, {}, began_ago_ms=2000, ended_ago_ms=500, error="why")
        tracing.stop()
        spans = collector.trace(PARENT[3:35], ["child", "earlier"])
        assert len(collector.spans()) == 2
        assert collector.paths == {"/here"}
    assert spans["child"].service == "of-mine"
    assert (spans["child"].error, spans["child"].attributes) == ("no", {"n": 3})
    assert spans["child"].links == [spans["child"].parent_id] == [PARENT[36:52]]
    assert spans["earlier"].error == "why"
    assert spans["earlier"].ended_ns - spans["earlier"].began_ns == pytest.approx(1.5e9, rel=0.01)


def test_a_collector_that_is_away_holds_nobody(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    tracing.configure("gateway")
    with tracing.start("lost", PARENT) as span:
        assert span.traceparent.startswith(PARENT[:36])
    monkeypatch.setattr(tracing, "STOP_WITHIN_S", 0.5)
    started_s = time.monotonic()
    tracing.stop()
    assert time.monotonic() - started_s < tracing.STOP_WITHIN_S + 1
    assert not tracing.is_on()

"""A slow job is told with where its time went, and a flood of them in one line a second."""

import pytest
import structlog

from shared import slow
from shared.messages import Job
from shared.slow import SlowStages

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def job(**timings_ms: float) -> Job:
    return Job(id="a", status="succeeded", model="small", track="B", created_at="", timings_ms=timings_ms)


def test_the_slowest_stage_is_named_with_all_others() -> None:
    with structlog.testing.capture_logs() as lines:
        SlowStages(100).tell(job(preprocess=20, inference=150, total=900), TRACEPARENT)
    (line,) = lines
    assert (line["event"], line["log_level"]) == ("job.slow", "warning")
    assert (line["job_id"], line["trace_id"]) == ("a", TRACEPARENT[3:35])
    assert (line["slowest"], line["slowest_ms"], line["untold"]) == ("inference", 150, 0)
    assert line["timings_ms"] == {"preprocess": 20, "inference": 150, "total": 900}


@pytest.mark.parametrize("timings_ms", [{}, {"total": 900.0}, {"inference": 100.0, "total": 900.0}])
def test_what_has_no_slow_stage_is_not_told(timings_ms: dict[str, float]) -> None:
    with structlog.testing.capture_logs() as lines:
        SlowStages(100).tell(job(**timings_ms))
    assert lines == []


def test_a_flood_is_one_line_and_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = SlowStages(100)
    with structlog.testing.capture_logs() as lines:
        for _ in range(5):
            stages.tell(job(inference=150))
        assert len(lines) == 1
        now_s = slow.time.monotonic()
        monkeypatch.setattr(slow.time, "monotonic", lambda: now_s + slow.PAUSE_S + 0.1)
        stages.tell(job(inference=150))
    assert [line["untold"] for line in lines] == [0, 4]

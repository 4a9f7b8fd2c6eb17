"""The verdicts of `make bench` and `make growth`: what is reached passes, what is not fails, by the exit code too."""

import asyncio
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks import growth, ladder, report
from benchmarks.books import Cost, median
from benchmarks.report import Sample


def sample(per_second: float, cpu_ms: float = 1.0) -> Sample:
    return Sample(per_second, 10.0, 20.0, {"valkey": cpu_ms})


def cost(cpu_ms: float, commands: float = 60.0) -> Cost:
    return Cost(100.0, None, {"valkey": cpu_ms / 2, "gateway": cpu_ms / 2}, {"hset": commands}, 5000.0, 4000.0)


QUEUED = {"10 queued": cost(2.0), "1,000 queued": cost(2.1), "100,000 queued": cost(2.5)}


def test_every_load_of_the_ladder_has_a_row_and_each_row_its_verdict() -> None:
    assert {load for load, *_ in report.WANTED} == {*ladder.LOADS, *ladder.MORE}
    figures = {
        "submit": {"gateway": sample(80.0), "bare": sample(100.0)},
        "any": {step: Sample(each.per_second, 0.0, 0.0, each.cpu_ms) for step, each in QUEUED.items()},
    }
    rows = report.judge(figures)
    assert [(row.load, row.holds) for row in rows] == [("submit", True), ("any", False)]
    said = report.text(figures, rows)
    assert "| any | CPU per picture, 100,000 queued / 10 queued | 1.25 | ≤ 1.1 | FAIL |" in said
    assert "| submit | accepted / a bare handler's SETs, a second | 0.80 | ≥ 0.7 | pass |" in said
    assert "| 10 queued | 100.0 |  |  | 2.0: valkey 1.0, gateway 1.0 |" in said


@pytest.mark.parametrize(("deep_ms", "code", "verdict"), [(2.1, 0, "pass"), (2.5, 1, "FAIL")])
def test_the_exit_code_tells_whether_the_row_is_reached(
    deep_ms: float, code: int, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def of_queued(_scale: growth.Scale, _say: growth.Say) -> growth.Costs:
        return QUEUED | {"100,000 queued": cost(deep_ms)}

    monkeypatch.setitem(growth.PARTS, "queued", of_queued)
    monkeypatch.setattr(growth, "of_queued", of_queued)
    monkeypatch.setattr(sys, "argv", ["growth", "--part", "queued", "--to", str(tmp_path)])
    assert growth.main() == code
    assert f"| {deep_ms / 2:.2f} | ≤ 1.1 | {verdict}" in capsys.readouterr().out
    (kept,) = tmp_path.glob("growth-queued-*.json")
    assert msgspec.json.decode(kept.read_bytes())["10 queued"]["commands"] == {"hset": 60.0}
    assert asyncio.run(ladder.run(["any"], 1.0, 1, tmp_path)) == code


def test_a_median_is_taken_of_each_figure_on_its_own() -> None:
    middle = median([cost(1.0, 70.0), cost(3.0, 60.0), cost(2.0, 80.0)])
    assert (middle.total_cpu_ms, middle.total_commands, middle.p50_ms) == (2.0, 70.0, None)

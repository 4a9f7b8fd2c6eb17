"""The ladder's tables: the medians, their ratios, and which rows of what is to be reached hold."""

import statistics
from collections.abc import Callable, Mapping, Sequence

import msgspec


class Sample(msgspec.Struct, frozen=True):
    """One turn of an arm, or the median of several: `cpu_ms` is CPU milliseconds per picture by process. Latencies are 0 where
    nobody waits."""

    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms: dict[str, float] = {}


class Row(msgspec.Struct, frozen=True):
    """One row of what is to be reached, as measured."""

    load: str
    measure: str
    value: float
    target: float
    at_most: bool

    @property
    def holds(self) -> bool:
        """Whether it is reached."""
        return self.value <= self.target if self.at_most else self.value >= self.target


Figures = Mapping[str, Mapping[str, Sample]]
"""Load -> arm -> median."""


def _ratio(one: str, other: str) -> Callable[[Mapping[str, Sample]], float]:
    return lambda arms: arms[one].per_second / arms[other].per_second


def _added_ms(arms: Mapping[str, Sample]) -> float:
    return arms["mesh-1"].p50_ms - arms["in-process-1"].p50_ms


def _cost_ratio(one: str, other: str) -> Callable[[Mapping[str, Sample]], float]:
    return lambda arms: sum(arms[one].cpu_ms.values()) / sum(arms[other].cpu_ms.values())


WANTED: tuple[tuple[str, str, Callable[[Mapping[str, Sample]], float], float, bool], ...] = (
    ("echo", "mesh p50 minus in-process p50, 1 client, ms", _added_ms, 4.0, True),
    ("echo", "mesh / peer, 16 clients", _ratio("mesh-16", "peer-16"), 1.5, False),
    ("echo", "mesh / in-process with 8 threads", _ratio("mesh-16", "in-process-8"), 1.2, False),
    ("large", "mesh / peer, 16 clients", _ratio("mesh-16", "peer-16"), 2.5, False),
    ("detector", "mesh / peer, 16 clients", _ratio("mesh-16", "peer-16"), 1.0, False),
    ("detector", "mesh / in-process with 8 threads", _ratio("mesh-16", "in-process-8"), 0.9, False),
    ("detector", "/predict/small p50 minus in-process p50, 1 client, ms", _added_ms, 10.0, True),
    ("echo", "shm / redis store, 16 clients", _ratio("mesh-16", "mesh-redis-16"), 1.5, False),
    ("submit", "accepted / a bare handler's SETs, a second", _ratio("gateway", "bare"), 0.7, False),
    ("any", "CPU per picture, 100,000 queued / 10 queued", _cost_ratio("100,000 queued", "10 queued"), 1.1, True),
)
"""Load, what, how it is computed from the arms' medians, the target, and whether it is a ceiling."""


def median(samples: Sequence[Sample]) -> Sample:
    """The median of each figure on its own."""
    parts = dict.fromkeys(part for sample in samples for part in sample.cpu_ms)
    return Sample(
        per_second=statistics.median(sample.per_second for sample in samples),
        p50_ms=statistics.median(sample.p50_ms for sample in samples),
        p99_ms=statistics.median(sample.p99_ms for sample in samples),
        cpu_ms={part: statistics.median(sample.cpu_ms.get(part, 0.0) for sample in samples) for part in parts},
    )


def judge(figures: Figures) -> list[Row]:
    """The rows of the loads that were measured."""
    return [
        Row(load, measure, of(figures[load]), target, at_most)
        for load, measure, of, target, at_most in WANTED
        if load in figures
    ]


def text(figures: Figures, rows: Sequence[Row]) -> str:
    """Markdown."""
    lines: list[str] = []
    for load, arms in figures.items():
        lines += ["", f"| {load} | per second | p50 ms | p99 ms | CPU ms per picture |", "|---|---|---|---|---|"]
        for arm, sample in arms.items():
            parts = sorted(sample.cpu_ms.items(), key=lambda part: -part[1])
            cpu = f"{sum(sample.cpu_ms.values()):.1f}: " + ", ".join(f"{part} {ms:.1f}" for part, ms in parts if ms >= 0.05)
            times = f"{sample.p50_ms:.2f} | {sample.p99_ms:.1f}" if sample.p50_ms else " | "
            lines.append(f"| {arm} | {sample.per_second:.1f} | {times} | {cpu} |")
    lines += ["", "| load | measure | measured | wanted | |", "|---|---|---|---|---|"]
    for row in rows:
        sign = "≤" if row.at_most else "≥"
        verdict = "pass" if row.holds else "FAIL"
        lines.append(f"| {row.load} | {row.measure} | {row.value:.2f} | {sign} {row.target:g} | {verdict} |")
    return "\n".join(lines[1:])

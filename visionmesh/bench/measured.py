"""What a run measured: samples as they come, and their summary."""

import math
from collections import Counter
from collections.abc import Sequence

import msgspec

from visionmesh.bench.endpoints import Outcome

CURVE = (*range(100), 99.5, 99.9, 100)
"""Percentiles of the latency curve in a result."""


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """One run at one load. It ends after `requests`, or after `duration_s`; 0 stands for neither. `rate` 0 is a closed loop:
    each client sends its next picture when it has its answer. Otherwise `rate` pictures arrive a second, evenly, whatever the
    server does, and `clients` bounds how many are under way."""

    name: str
    model: str = ""
    clients: int
    requests: int = 0
    duration_s: float = 0.0
    rate: float = 0.0


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds."""

    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    max: float = 0.0


class Second(msgspec.Struct, frozen=True, array_like=True):
    """One second of a run: how many answers were good, how many not, and the median latency in ms."""

    good: int
    bad: int
    p50: float


class Result(msgspec.Struct, kw_only=True):
    """Summary of a phase. Latencies are of good answers, from when a picture was due to be sent to its whole answer.

    `late_ms_p99` is how long after its time a picture was sent although a connection was free: the generator's own delay.
    `unsent` arrivals never found a free connection. `batch_sizes` counts pictures by the batch they were in; `batch_fill` is
    the mean batch as a share of the model's largest.
    """

    phase: Phase
    started_at: str
    wall_s: float
    good: int
    errors: dict[str, int]
    per_second: float
    latency_ms: Latency
    stages_ms: dict[str, Latency]
    batch_sizes: dict[int, int]
    mean_batch: float | None
    batch_fill: float | None = None
    late_ms_p99: float
    unsent: int
    sent_bytes: int
    client_cpu_ms: float
    seconds: list[Second]
    curve_ms: list[float]

    @property
    def bad(self) -> int:
        """How many answers were errors."""
        return sum(self.errors.values())


class Tally:
    """Collects samples of a running phase."""

    def __init__(self) -> None:
        self.good = 0
        self.bad = 0
        self.latencies_ms: list[float] = []
        self._ends_s: list[float] = []
        self._bad_ends_s: list[float] = []
        self._late_ms: list[float] = []
        self._errors: Counter[str] = Counter()
        self._stages_ms: dict[str, list[float]] = {}
        self._batch_sizes: Counter[int] = Counter()

    def add(self, ended_s: float, latency_ms: float, late_ms: float, outcome: Outcome) -> None:
        """One answer, `ended_s` after the start."""
        self._late_ms.append(late_ms)
        if outcome.error:
            self.bad += 1
            self._errors[outcome.error] += 1
            self._bad_ends_s.append(ended_s)
            return
        self.good += 1
        self.latencies_ms.append(latency_ms)
        self._ends_s.append(ended_s)
        for stage, took_ms in outcome.timings_ms.items():
            self._stages_ms.setdefault(stage, []).append(took_ms)
        if outcome.batch_size:
            self._batch_sizes[outcome.batch_size] += 1

    def result(
        self, phase: Phase, started_at: str, wall_s: float, *, unsent: int, sent_bytes: int, client_cpu_s: float
    ) -> Result:
        """The summary."""
        ordered = sorted(self.latencies_ms)
        # A batch of n pictures is counted n times, so the mean over batches is the harmonic one.
        batches = sum(count / size for size, count in self._batch_sizes.items())
        answers = self.good + self.bad
        return Result(
            phase=phase,
            started_at=started_at,
            wall_s=round(wall_s, 3),
            good=self.good,
            errors=dict(self._errors.most_common()),
            per_second=round(self.good / wall_s, 3) if wall_s else 0.0,
            latency_ms=latency(ordered),
            stages_ms={stage: latency(sorted(values)) for stage, values in self._stages_ms.items()},
            batch_sizes=dict(sorted(self._batch_sizes.items())),
            mean_batch=round(self._batch_sizes.total() / batches, 3) if batches else None,
            late_ms_p99=round(percentile(sorted(self._late_ms), 99), 3),
            unsent=unsent,
            sent_bytes=sent_bytes,
            client_cpu_ms=round(client_cpu_s * 1000 / answers, 4) if answers else 0.0,
            seconds=self._by_second(),
            curve_ms=[round(percentile(ordered, at), 3) for at in CURVE] if ordered else [],
        )

    def _by_second(self) -> list[Second]:
        latencies: dict[int, list[float]] = {}
        for end_s, latency_ms in zip(self._ends_s, self.latencies_ms, strict=True):
            latencies.setdefault(int(end_s), []).append(latency_ms)
        bad = Counter(int(end_s) for end_s in self._bad_ends_s)
        last = max([*latencies, *bad], default=-1)
        return [
            Second(len(values), bad[second], round(percentile(sorted(values), 50), 3))
            for second in range(last + 1)
            for values in [latencies.get(second, [])]
        ]


def percentile(ordered: Sequence[float], at: float) -> float:
    """The smallest value that at least `at` percent of the ordered values do not exceed (nearest rank); 0 of none."""
    return ordered[max(math.ceil(len(ordered) * at / 100) - 1, 0)] if ordered else 0.0


def latency(ordered: Sequence[float]) -> Latency:
    """Summary of ordered milliseconds."""
    if not ordered:
        return Latency()
    p50, p90, p95, p99 = (round(percentile(ordered, at), 3) for at in (50, 90, 95, 99))
    return Latency(round(sum(ordered) / len(ordered), 3), p50, p90, p95, p99, round(ordered[-1], 3))

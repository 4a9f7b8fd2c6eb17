"""Two result files side by side: the same runs of both, and by how much the second is better or worse."""

from collections.abc import Iterator

import msgspec

from visionmesh.bench.measured import Result
from visionmesh.bench.results import Report


class Change(msgspec.Struct, frozen=True):
    """One figure of a run in both files. `percent` is positive where the second is better."""

    run: str
    figure: str
    before: float
    after: float
    percent: float


def compare(before: Report, after: Report) -> list[Change]:
    """The figures of all runs that are in both: same name, model and number of clients."""
    earlier = {_key(result): result for result in before.results}
    return [
        change
        for result in after.results
        if (other := earlier.get(_key(result))) is not None
        for change in _changes(" ".join(part for part in _key(result) if part), other, result)
    ]


def _key(result: Result) -> tuple[str, str, str]:
    return result.phase.name, result.phase.model, f"{result.phase.clients} clients"


def _changes(run: str, before: Result, after: Result) -> Iterator[Change]:
    """Throughput rises, times fall, when things get better."""
    if before.per_second:
        yield Change(run, "per_second", before.per_second, after.per_second, _percent(before.per_second, after.per_second))
    for figure in ("p50", "p95", "p99"):
        old, new = getattr(before.latency_ms, figure), getattr(after.latency_ms, figure)
        if old:
            yield Change(run, f"{figure}_ms", old, new, -_percent(old, new))
    if before.bad or after.bad:
        yield Change(run, "errors", before.bad, after.bad, 100.0 * ((after.bad < before.bad) - (after.bad > before.bad)))


def _percent(old: float, new: float) -> float:
    return round((new / old - 1) * 100, 1)

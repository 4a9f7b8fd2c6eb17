"""The files of a benchmark: JSON with all of it, CSV with a row for each run, both named by time and mode."""

import csv
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from shared import cores
from visionmesh.bench.measured import Result

FOLDER = Path("bench-results")


class ResultsError(ValueError):
    """A result file cannot be read. The message is one line."""


class Machine(msgspec.Struct, frozen=True):
    """Where the load generator ran."""

    cores: int
    python: str
    system: str


class Report(msgspec.Struct, kw_only=True):
    """All runs of one call. `pictures` is how many different ones were sent, `picture_bytes` their mean size."""

    made_at: str
    url: str
    mode: str
    endpoint: str
    pictures: int
    picture_bytes: int
    machine: Machine
    results: list[Result] = []


def machine() -> Machine:
    """This one."""
    return Machine(cores.available(), platform.python_version(), f"{platform.system()} {platform.machine()}")


def now() -> str:
    """The present time in UTC, by RFC 3339."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def write(report: Report, folder: Path) -> dict[str, Path]:
    """Write the report as `json` and `csv`; returns the paths by these names. Nothing is overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    stem, number = f"{re.sub(r'[^0-9TZ]', '', report.made_at)}-{report.mode}", 1
    while (folder / f"{stem}.json").exists():
        number += 1
        stem = f"{stem.split('.')[0]}.{number}"
    paths = {suffix: folder / f"{stem}.{suffix}" for suffix in ("json", "csv")}
    paths["json"].write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    with paths["csv"].open("w", newline="", encoding="utf-8") as file:
        rows = [_row(result) for result in report.results]
        fields = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(file, fields, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return paths


def read(path: Path) -> Report:
    """A report that `write` wrote.

    Raises:
        ResultsError: it is none.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path} is no JSON result of this benchmark: {error}") from None


def _row(result: Result) -> dict[str, Any]:
    phase, latency = result.phase, result.latency_ms
    row: dict[str, Any] = {
        "name": phase.name, "model": phase.model, "clients": phase.clients, "rate": phase.rate,
        "started_at": result.started_at, "wall_s": result.wall_s, "good": result.good, "bad": result.bad,
        "unsent": result.unsent, "per_second": result.per_second, "mean_ms": latency.mean, "p50_ms": latency.p50,
        "p90_ms": latency.p90, "p95_ms": latency.p95, "p99_ms": latency.p99, "max_ms": latency.max,
        "mean_batch": result.mean_batch, "batch_fill": result.batch_fill, "client_cpu_ms": result.client_cpu_ms,
        "errors": "; ".join(f"{code} x{count}" for code, count in result.errors.items()),
    }  # fmt: skip
    return row | {f"{stage}_p50_ms": values.p50 for stage, values in result.stages_ms.items()}

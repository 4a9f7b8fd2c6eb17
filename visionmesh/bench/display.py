"""What a person sees of a benchmark: a line that moves while a phase runs, and tables of what it measured."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from visionmesh.bench.compare import Change
from visionmesh.bench.measured import Phase, Result, Tally, percentile

RECENT = 200
"""The live percentiles are of so many answers at most, so that they follow what happens."""

NOTABLE_PERCENT = 5.0


class Display:
    """Live on a terminal, a line for each ended phase elsewhere."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal and not quiet else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def started(self, phase: Phase) -> None:
        """A phase begins."""
        if self._live:
            self._live.update(Text(f"{_load(phase)} ..."), refresh=True)

    def watch(self, phase: Phase, tally: Tally, elapsed_s: float) -> None:
        """A phase runs."""
        if not self._live:
            return
        recent = sorted(tally.latencies_ms[-RECENT:])
        target = f"/{phase.requests}" if phase.requests else f" of {phase.duration_s:g} s"
        done = tally.good + tally.bad if phase.requests else round(elapsed_s)
        text = Text.assemble(
            (_load(phase), "bold"),
            f"  {done}{target}  {tally.good / max(elapsed_s, 0.001):.1f}/s",
            f"  p50 {percentile(recent, 50):.1f} ms  p99 {percentile(recent, 99):.1f} ms",
            (f"  {tally.bad} errors" if tally.bad else "", "red"),
        )
        self._live.update(text, refresh=True)

    def ended(self, result: Result) -> None:
        """A phase is over."""
        if not self._quiet:
            latency = result.latency_ms
            self._console.print(
                f"{_load(result.phase):<32} {result.per_second:8.1f}/s   p50 {latency.p50:7.1f}   p95 {latency.p95:7.1f}   "
                f"p99 {latency.p99:7.1f} ms" + (f"   [red]{result.bad} errors[/]" if result.bad else ""),
                highlight=False,
            )


def show(console: Console, results: Sequence[Result]) -> None:
    """Stages, batches, errors, and how the load generator itself did."""
    stages = list(dict.fromkeys(stage for result in results for stage in result.stages_ms))
    if stages:
        table = Table("run, p50 in ms", *stages, "batch", "fill", box=None, header_style="dim")
        for result in results:
            cells = [f"{result.stages_ms[stage].p50:.1f}" if stage in result.stages_ms else "" for stage in stages]
            batch = f"{result.mean_batch:.2f}" if result.mean_batch else ""
            table.add_row(_load(result.phase), *cells, batch, f"{result.batch_fill:.0%}" if result.batch_fill else "")
        console.print(table)
    for result in results:
        for code, count in result.errors.items():
            console.print(f"{_load(result.phase)}: [red]{count} x {code}[/]", highlight=False)
        if result.unsent:
            console.print(f"{_load(result.phase)}: [red]{result.unsent} arrivals found no free connection[/]", highlight=False)
    cpu_ms = sum(result.client_cpu_ms * (result.good + result.bad) for result in results)
    answers = sum(result.good + result.bad for result in results)
    late_ms = max((result.late_ms_p99 for result in results), default=0.0)
    console.print(
        f"[dim]load generator: {cpu_ms / max(answers, 1):.2f} ms of CPU a picture, at most {late_ms:.1f} ms late (p99)[/]",
        highlight=False,
    )


def show_changes(console: Console, changes: Sequence[Change]) -> None:
    """A comparison, with what changed by more than a little in colour."""
    table = Table("run", "figure", "before", "after", "better by", box=None, header_style="dim")
    for change in changes:
        colour = "green" if change.percent >= NOTABLE_PERCENT else "red" if change.percent <= -NOTABLE_PERCENT else "dim"
        cells = (f"{change.before:g}", f"{change.after:g}", f"[{colour}]{change.percent:+.1f} %[/]")
        table.add_row(change.run, change.figure, *cells)
    console.print(table)


def _load(phase: Phase) -> str:
    return f"{phase.name} {phase.model}".strip() + (f" {phase.rate:.0f}/s" if phase.rate else f" x{phase.clients}")

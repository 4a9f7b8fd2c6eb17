"""`python -m tests.overload [--seconds 180] [--times 3] [--peak 20]`: the whole of it, with a table."""

import argparse
import sys

from rich.console import Console
from rich.table import Table

from tests.overload.run import Report, overload
from visionmesh.bench.load import on_fast_loop

GOODPUT_LEAST = 0.95
REFUSED_P99_MOST_MS = 50.0
RECOVERY_MOST_S = 30.0


def show(console: Console, report: Report) -> None:
    """Print what was promised beside what was seen."""
    table = Table("", "seen", "promised", box=None)
    table.add_row("peak, closed loop", f"{report.peak_per_s:.1f}/s", "")
    table.add_row("offered, open loop", f"{report.offered_per_s:.1f}/s", "")
    table.add_row("goodput", f"{report.goodput_per_s:.1f}/s, {report.share_of_peak:.0%} of the peak", f"{GOODPUT_LEAST:.0%}")
    for name, latency, promise in (
        ("accepted", report.accepted, ""),
        ("refused", report.refused, f"p99 {REFUSED_P99_MOST_MS:.0f} ms"),
    ):
        table.add_row(name, f"{latency.count}, p50 {latency.p50} ms, p99 {latency.p99} ms, most {latency.most} ms", promise)
    table.add_row("unanswered", str(report.unanswered), "0")
    table.add_row("recovery", f"{report.recovery_s:.1f} s", f"{RECOVERY_MOST_S:.0f} s")
    table.add_row("accepted jobs lost, ended twice", f"{report.lost}, {report.twice}", "0, 0")
    table.add_row("ends", str(report.statuses), "")
    table.add_row("keys left after their time", f"{len(report.keys_left)} {report.keys_left[:3]}", "0")
    table.add_row("memory in MB before and after", str(report.rss_mb), "")
    console.print(table)
    told = report.retry_after_s
    console.print(
        f"Retry-After in seconds: {min(told, default=0)} to {max(told, default=0)}; other answers: {report.errors or 'none'}"
    )


def main() -> int:
    """Run, print, and say by the exit code whether the promise held."""
    parser = argparse.ArgumentParser(prog="overload")
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--times", type=float, default=3)
    parser.add_argument("--peak", type=float, default=20, help="seconds in which the peak is measured")
    given = parser.parse_args()
    console = Console(soft_wrap=True, highlight=False)
    report = on_fast_loop(overload(seconds=given.seconds, times=given.times, peak_s=given.peak, say=console.print))
    show(console, report)
    held = not report.lost and not report.twice and not report.keys_left and not report.unanswered and not report.errors
    held = held and report.share_of_peak >= GOODPUT_LEAST and report.refused.p99 < REFUSED_P99_MOST_MS
    return 0 if held and report.recovery_s < RECOVERY_MOST_S else 1


if __name__ == "__main__":
    sys.exit(main())

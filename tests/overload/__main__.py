"""`python -m tests.overload [--cores shared apart] [--clients send ask] [--seconds 180] [--rounds 1]`: all of it, with tables.

Each arrangement of the cores is tried with each kind of clients, on a mesh of its own.
"""

import argparse
import itertools
import sys
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from deploy.local.errors import StartError
from tests.chaos.memory import grown
from tests.overload.apart import CORES, TooFewCores
from tests.overload.load import CLIENTS
from tests.overload.run import Report, overload
from visionmesh.bench.load import on_fast_loop

GOODPUT_LEAST = 0.95
REFUSED_P99_MOST_MS = 50.0
RECOVERY_MOST_S = 30.0
MEMORY_MOST = 1.25
"""After the run, of what the parts had after the warm-up and the first peak: flat, but for what a full queue takes."""


def held(report: Report) -> bool:
    """Whether a round kept all that is promised."""
    flat = not grown(report.rss_mb, MEMORY_MOST)
    nothing = (report.lost, report.twice, report.unanswered, len(report.errors), len(report.keys_left)) == (0,) * 5
    fast = report.refused.p99 < REFUSED_P99_MOST_MS and report.recovery_s < RECOVERY_MOST_S
    return nothing and fast and flat and report.share_of_peak >= GOODPUT_LEAST


def show(console: Console, reports: list[Report]) -> None:
    """Print what was promised beside what was seen, a column for each round."""
    table = Table("", *(f"{report.cores}, {report.clients}" for report in reports), "promised", box=None)

    def row(name: str, seen: Callable[[Report], object], promised: str = "") -> None:
        table.add_row(name, *(str(seen(report)) for report in reports), promised)

    row("peak before and after, closed loop", lambda report: " and ".join(f"{peak:.1f}/s" for peak in report.peaks_per_s))
    row("offered, open loop", lambda report: f"{report.offered_per_s:.1f}/s")
    row(
        "goodput",
        lambda report: f"{report.goodput_per_s:.1f}/s, {report.share_of_peak:.0%} of the peak",
        f"{GOODPUT_LEAST:.0%}",
    )
    row("accepted", lambda report: report.accepted)
    row("refused", lambda report: report.refused, f"p99 < {REFUSED_P99_MOST_MS:.0f} ms")
    row("Retry-After", lambda report: f"{min(report.retry_after_s, default=0)} to {max(report.retry_after_s, default=0)} s")
    row("unanswered, other answers", lambda report: f"{report.unanswered}, {report.errors or 0}", "0, 0")
    row("recovery", lambda report: f"{report.recovery_s:.1f} s", f"< {RECOVERY_MOST_S:.0f} s")
    row("accepted jobs lost, ended twice", lambda report: f"{report.lost}, {report.twice}", "0, 0")
    row("ends", lambda report: ", ".join(f"{status} {count}" for status, count in report.statuses.items()))
    row("keys left after their time", lambda report: f"{len(report.keys_left)} {', '.join(report.keys_left[:3])}", "0")
    for part in reports[0].rss_mb:
        row(f"MB of {part} before and after", lambda report, part=part: " and ".join(f"{mb:.0f}" for mb in report.rss_mb[part]))
    for part in reports[0].cpu_ms:
        row(f"ms of {part} for each offered", lambda report, part=part: f"{report.cpu_ms[part]:.2f}")
    row("cores taken by others", lambda report: f"{report.strangers:.0%}")
    row("held", lambda report: "yes" if held(report) else "no")
    console.print(table)


def main() -> int:
    """Run, print, and say by the exit code whether all rounds kept what is promised."""
    parser = argparse.ArgumentParser(prog="overload")
    parser.add_argument("--cores", nargs="+", choices=CORES, default=CORES, help="see tests/overload/apart.py")
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=CLIENTS, help="see tests/overload/load.py")
    parser.add_argument("--seconds", type=float, default=180, help="of overload in each round")
    parser.add_argument("--times", type=float, default=3)
    parser.add_argument("--peak", type=float, default=20, help="seconds in which the peak is measured, before and after")
    parser.add_argument("--rounds", type=int, default=1, help="of each arrangement with each kind of clients")
    given = parser.parse_args()
    console = Console(soft_wrap=True, highlight=False, width=180)
    reports: list[Report] = []
    for _, cores, clients in itertools.product(range(given.rounds), given.cores, given.clients):
        console.print(f"cores {cores}, clients {clients}")
        run = overload(
            seconds=given.seconds,
            times=given.times,
            peak_s=given.peak,
            cores=cores,
            clients=clients,
            say=console.print,
        )
        try:
            reports.append(on_fast_loop(run))
        except (TooFewCores, StartError) as error:
            print(f"overload: {error}", file=sys.stderr)  # noqa: T201 - one line for a person
            return 2
    show(console, reports)
    return 0 if all(held(report) for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())

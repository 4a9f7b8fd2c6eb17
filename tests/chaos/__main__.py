"""`python -m tests.chaos [--jobs 5000] [--pause 3] [--seed 1]`: the whole of it, with a table."""

import argparse
import asyncio
import sys

from rich.console import Console
from rich.table import Table

from tests.chaos.faults import FAULTS
from tests.chaos.memory import grown
from tests.chaos.run import RECOVERY_S, Report, chaos

MEMORY_MOST = 1.4
"""Before is measured of a mesh that has just started and has done nothing yet: some of the growth is its first work."""


def show(console: Console, report: Report) -> None:
    """Print the table of faults, and the reckoning."""
    table = Table("fault", "times", "slowest recovery", box=None)
    for name, times in sorted(report.faults.items()):
        table.add_row(name, str(times), f"{report.slowest_recovery_s[name]:.1f} s")
    console.print(table)
    console.print(f"accepted {report.accepted}, ended {report.ended}, lost {report.lost}, ended twice {report.twice}")
    console.print(f"in {report.seconds:.0f} s; ends: {report.statuses}; refusals met by the clients: {report.refused}")
    console.print(f"memory in MB before and after: {report.rss_mb}, of as many processes: {report.complete}")
    console.print(f"slots of shared memory left leased: {report.slots_leaked or 0}")
    for line in report.errors_logged[:10]:
        console.print(line)
    console.print(f"files left: {len(report.files_left)} {report.files_left[:5]}")
    console.print(f"keys left after their time: {len(report.keys_left)} {report.keys_left[:5]}")


def main() -> int:
    """Run, print, and say by the exit code whether the promise held."""
    parser = argparse.ArgumentParser(prog="chaos")
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--pause", type=float, default=3.0, help="longest pause between two faults, in seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", nargs="*", default=list(FAULTS))
    given = parser.parse_args()
    console = Console(soft_wrap=True, highlight=False)
    report = asyncio.run(chaos(jobs=given.jobs, faults=given.faults, pause_s=given.pause, seed=given.seed, say=console.print))
    show(console, report)
    held = report.lost == 0 and report.twice == 0 and not report.keys_left and not report.files_left and not report.slots_leaked
    flat = report.complete and not grown(report.rss_mb, MEMORY_MOST)
    return 0 if held and flat and max(report.slowest_recovery_s.values(), default=0) <= RECOVERY_S else 1


if __name__ == "__main__":
    sys.exit(main())

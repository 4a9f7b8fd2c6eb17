"""`python -m tests.fuzz [--mutants 20000] [--sample 400] [--seed 1]`: the whole of it, with a table."""

import argparse
import asyncio
import random
import sys
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from deploy.local import ports
from deploy.local.supervisor import Options, running
from tests.fuzz import corpus, suites
from tests.fuzz.run import DECODE_TIMEOUT_S, LABEL, Report, through_the_mesh, through_the_pool

MOST_S = DECODE_TIMEOUT_S + 1


def row(table: Table, name: str, report: Report) -> None:
    """One line of the table."""
    ends = ", ".join(f"{code} {count}" for code, count in report.outcomes.most_common())
    table.add_row(name, str(report.pictures), ends, f"{report.slowest_s:.2f} s", str(report.restarts), str(len(report.untyped)))


def _fetched(console: Console, what: str, fetch: Callable[[], dict[str, bytes]]) -> dict[str, bytes]:
    """A suite, or none of it and a line that says why."""
    try:
        return fetch()
    except OSError as error:
        console.print(f"without {what}: {error}")
        return {}


async def fuzz(console: Console, mutants: int, sample: int, seed: int) -> bool:
    """Run it all; whether every picture ended as it should and no neighbour was hurt."""
    made = corpus.made()
    libpng = _fetched(console, "libpng's suite", suites.libpng_suite)
    fetched = {"Pillow's test images": _fetched(console, "Pillow's suite", suites.pillow_suite), "libpng's test images": libpng}
    pngsuite = suites.pngsuite()
    good = {name: suites.size_of_png(data) for name, data in pngsuite.items()}
    good |= {name: suites.size_of_png(data) for name, data in libpng.items() if not name.startswith(suites.CRASHERS)}
    all_suites = fetched | {"PngSuite": pngsuite, "PngSuite, broken": suites.broken_pngsuite()}
    suite = {f"{which}: {name}": data for which, files in all_suites.items() for name, data in files.items()}
    table = Table("pictures", "count", "ends", "slowest", "decoders lost", "untyped", box=None)
    reports = {which: await through_the_pool(files.items(), sizes=good) for which, files in all_suites.items() if files}
    reports["mutants"] = await through_the_pool(corpus.mutants(made | suite, mutants, seed))
    kept = random.Random(seed).sample(sorted((made | suite).items()), min(sample // 4, len(made | suite)))
    bad = kept + list(corpus.mutants(made | suite, sample - len(kept), seed + 1))
    async with running(Options(port=ports.free())) as mesh:
        reports["through the mesh"] = through = await through_the_mesh(mesh.url, bad)
    for name, report in reports.items():
        row(table, name, report)
    console.print(table)
    console.print(f"neighbours of the {through.pictures} in the mesh: {dict(through.neighbours)}")
    for report in reports.values():
        for line in [*report.untyped[:5], *report.wrong[:5], *report.killers[:5]]:
            console.print(f"  {line}")
    fine = all(
        not report.untyped and not report.wrong and report.slowest_s < MOST_S
        for name, report in reports.items()
        if name != "through the mesh"
    )
    return fine and not through.untyped and set(through.neighbours) == {LABEL}


def main() -> int:
    """Run, print, and say by the exit code whether the promise held."""
    parser = argparse.ArgumentParser(prog="fuzz")
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--sample", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    console = Console(soft_wrap=True, highlight=False)
    return 0 if asyncio.run(fuzz(console, given.mutants, given.sample, given.seed)) else 1


if __name__ == "__main__":
    sys.exit(main())

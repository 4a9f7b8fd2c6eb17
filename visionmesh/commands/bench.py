"""`visionmesh bench`: load on a running mesh, and what it measured."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from visionmesh.bench import bare, load, pictures, plot, results
from visionmesh.bench.compare import compare
from visionmesh.bench.connection import address_of
from visionmesh.bench.display import Display, show, show_changes
from visionmesh.bench.endpoints import ENDPOINTS, request
from visionmesh.bench.measured import Phase, Result
from visionmesh.bench.modes import MODES, Plan
from visionmesh.bench.pictures import NoPictures
from visionmesh.bench.results import Report, ResultsError
from visionmesh.bench.session import BenchError, Session
from visionmesh.commands.submit import DEFAULT_URL, URL

SMALL, LARGE = (810, 1080), (4000, 3000)
CEILING_S = 3.0

Mode = StrEnum("Mode", list(MODES))
EndpointName = StrEnum("EndpointName", list(ENDPOINTS))
QUICK, JOBS = Mode("quick"), EndpointName("jobs")
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as a line of JSON; what is for people goes to stderr.")]

app = typer.Typer(invoke_without_command=True)


@app.callback()
def bench(
    context: typer.Context,
    url: URL = DEFAULT_URL,
    mode: Annotated[
        Mode, typer.Option(help="single, quick, full, all (each picture once), sustained, variable, matrix.")
    ] = QUICK,
    clients: Annotated[int, typer.Option(min=0, max=4096, help="At most so many pictures under way; 0: the mode's.")] = 0,
    requests: Annotated[int, typer.Option(min=0, help="A run ends after so many; 0: by time.")] = 0,
    duration: Annotated[float, typer.Option(min=0, help="A run ends after so many seconds; 0: the mode's.")] = 0.0,
    rate: Annotated[float, typer.Option(min=0, help="Arrivals a second, whatever the mesh does (open loop).")] = 0.0,
    image: Annotated[list[Path] | None, typer.Option(help="A picture to send; may be given more than once.")] = None,
    images: Annotated[list[Path] | None, typer.Option(help="A folder of pictures.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many pictures.")] = 1000,
    large: Annotated[bool, typer.Option("--large", help="Without pictures of yours: 12 MP instead of 810x1080.")] = False,
    model: Annotated[str, typer.Option(help="A model of the mesh; without one, its default.")] = "",
    track: Annotated[str, typer.Option(help="All models of a track, A to D, or `all`.")] = "",
    endpoint: Annotated[EndpointName, typer.Option(help="jobs, predict (the predecessor's), submit (202 only).")] = JOBS,
    key: Annotated[str, typer.Option(envvar="VISIONMESH_API_KEY", help="The key, where the mesh wants one.")] = "",
    warmup: Annotated[int, typer.Option(min=0, help="Pictures sent to each model before, not counted.")] = 10,
    to: Annotated[Path, typer.Option(help="Folder for the results.")] = results.FOLDER,
    ceiling: Annotated[bool, typer.Option("--ceiling", help="Measure what the load generator itself can do, and end.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only where the results are.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put load on a running mesh; print and keep throughput, latencies, errors, batch fill and stages."""
    if context.invoked_subcommand:
        return
    console = Console(stderr=as_json)
    try:
        address = address_of(url)
        chosen = pictures.load([*(image or []), *(images or [])], at_most=limit) if image or images else _ours(large=large)
    except (ValueError, NoPictures) as error:
        raise typer.BadParameter(str(error)) from None
    if ceiling:
        reached = load.on_fast_loop(_ceiling(console, chosen, clients or 16, duration or CEILING_S))
        if as_json:
            _print_json(reached)
        return
    display = Display(console, quiet=quiet)
    session = Session(
        address=address, pictures=chosen, endpoint=endpoint.value, key=key, warm_up=warmup,
        started=display.started, ended=display.ended, watch=display.watch,
    )  # fmt: skip

    async def measure() -> list[Result]:
        models = await session.models(model, track or ("all" if mode == "matrix" and not model else ""))
        plan = Plan(models=models, clients=clients, requests=requests, duration_s=duration, rate=rate, pictures=len(chosen))
        with display:
            return await session.run(mode.value, plan)

    try:
        measured = load.on_fast_loop(measure())
    except BenchError as error:
        console.print(f"[red]visionmesh bench:[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    report = Report(
        made_at=results.now(), url=url, mode=mode.value, endpoint=endpoint.value, pictures=len(chosen),
        picture_bytes=sum(map(len, chosen)) // len(chosen), machine=results.machine(), results=measured,
    )  # fmt: skip
    if not quiet:
        show(console, measured)
    paths = results.write(report, to)
    paths["svg"] = paths["json"].with_suffix(".svg")
    paths["svg"].write_text(plot.svg(report), "utf-8")
    console.print("results: " + ", ".join(str(path) for path in paths.values()), highlight=False, soft_wrap=True)
    if as_json:
        _print_json(report)


@app.command("compare")
def compare_files(
    before: Annotated[Path, typer.Argument(help="A JSON result.")],
    after: Annotated[Path, typer.Argument(help="The JSON result that may be better.")],
    worse_than: Annotated[float, typer.Option(help="Exit code 1 if a figure is worse by more than so many percent.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Compare two results, run by run."""
    try:
        changes = compare(results.read(before), results.read(after))
    except ResultsError as error:
        raise typer.BadParameter(str(error)) from None
    if not changes:
        raise typer.BadParameter("the two files have no run in common (same name, model and clients)")
    if as_json:
        _print_json(changes)
    else:
        show_changes(Console(), changes)
    if worse_than and any(change.percent < -worse_than for change in changes):
        raise typer.Exit(1)


@app.command("plot")
def plot_file(
    result: Annotated[Path, typer.Argument(help="A JSON result.")],
    to: Annotated[Path | None, typer.Option(help="The SVG; by default beside the result.")] = None,
) -> None:
    """Draw a result again."""
    try:
        drawn = plot.svg(results.read(result))
    except ResultsError as error:
        raise typer.BadParameter(str(error)) from None
    target = to or result.with_suffix(".svg")
    target.write_text(drawn, "utf-8")
    Console().print(str(target), highlight=False, soft_wrap=True)


def _print_json(figures: Any) -> None:
    sys.stdout.write(msgspec.json.encode(figures).decode() + "\n")


def _ours(*, large: bool) -> list[bytes]:
    return pictures.generate(*(LARGE if large else SMALL))


async def _ceiling(console: Console, chosen: list[bytes], clients: int, duration_s: float) -> Result:
    """The load generator against a server that does nothing: what it measures of a mesh cannot be more."""
    endpoint = ENDPOINTS["submit"]
    async with bare.running() as (address, _):
        requests = [request(endpoint, address, "none", picture) for picture in chosen]
        phase = Phase(name="ceiling", clients=clients, duration_s=duration_s)
        result = await load.run(address, endpoint, requests, phase)
    per_core = 1000 / result.client_cpu_ms if result.client_cpu_ms else 0.0
    console.print(
        f"load generator: {result.per_second:.0f} pictures/s of {len(chosen[0]) / 1000:.0f} kB with {clients} clients, "
        f"p50 {result.latency_ms.p50:.2f} ms, {result.client_cpu_ms:.3f} ms of CPU each "
        f"({per_core:.0f}/s if it had a core to itself)",
        highlight=False,
    )
    return result

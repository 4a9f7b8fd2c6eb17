"""`visionmesh submit`: send pictures to a running mesh and print what is on them."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from shared.messages import Job, job_to_json
from visionmesh.client import Client
from visionmesh.drawing import draw

URL = Annotated[str, typer.Option(envvar="VISIONMESH_URL", help="Where the mesh answers.")]
MODEL = Annotated[str, typer.Option(help="A model of `/v1/models`; the mesh has a default.")]
CONFIDENCE = Annotated[float | None, typer.Option(min=0, max=1, help="Least confidence of what is reported.")]
CLASSES = Annotated[str, typer.Option(help="Only these classes, comma-separated names or numbers.")]
DEFAULT_URL = "http://127.0.0.1:9600"


def submit(
    pictures: Annotated[list[Path], typer.Argument(help="Pictures to send.")],
    url: URL = DEFAULT_URL,
    model: MODEL = "",
    confidence: CONFIDENCE = None,
    classes: CLASSES = "",
    draw_to: Annotated[Path | None, typer.Option("--draw", help="Folder for copies with the boxes drawn.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each job as a line of JSON.")] = False,
) -> None:
    """Send pictures to a mesh, wait, and print what is on them."""
    console = Console()
    failed = False
    with Client(url) as client:
        for picture in pictures:
            job = client.detect(picture, model=model, confidence=confidence, classes=classes)
            failed = failed or job.status != "succeeded"
            if as_json:
                sys.stdout.write(job_to_json(job).decode() + "\n")
            else:
                show(console, picture, job)
            if draw_to and job.detections is not None:
                drawn = draw_to / f"{picture.stem}.jpg"
                draw(picture, job.detections, drawn)
                if not as_json:
                    console.print(f"  drawn to {drawn}", highlight=False)
    if failed:
        raise typer.Exit(1)


def show(console: Console, picture: Path, job: Job) -> None:
    """Print a job for a person."""
    total_ms = job.timings_ms.get("total", 0.0)
    size = f", {job.image.width}x{job.image.height}" if job.image else ""
    console.print(f"[bold]{picture.name}[/]{size}, {job.status} in {total_ms:.0f} ms by {job.model}", highlight=False)
    if job.error:
        console.print(f"  [red]{job.error.code}[/]: {job.error.detail}", highlight=False, soft_wrap=True)
    for found in job.detections or ():
        box = found.box
        where = f"({box.x1:.0f}, {box.y1:.0f}) - ({box.x2:.0f}, {box.y2:.0f})"
        console.print(f"  {found.label:<14} {found.confidence:.3f}  {where}", highlight=False)
    if job.detections == []:
        console.print("  [dim]nothing found[/]")

"""`visionmesh demo`: a mesh for a minute, three photos through it, their boxes drawn."""

import asyncio
import itertools
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.local.supervisor import Options, running
from shared.messages import job_to_json
from visionmesh.client import Client
from visionmesh.commands.submit import show
from visionmesh.commands.up import options
from visionmesh.display import StartDisplay
from visionmesh.drawing import draw

PHOTOS = Path(__file__).parents[1] / "photos"


def demo(
    photos: Annotated[list[Path] | None, typer.Argument(help="Pictures of yours; without any, three of ours.")] = None,
    to: Annotated[Path, typer.Option(help="Folder for the drawn pictures.")] = Path("demo"),
    as_json: Annotated[bool, typer.Option("--json", help="Print each job as a line of JSON.")] = False,
) -> None:
    """Start a mesh, find the objects in some photos, draw them, stop the mesh."""
    for photo in photos or []:
        if not photo.is_file():
            raise typer.BadParameter(f"{photo} is not a file")
    asyncio.run(_demo(options(), photos or sorted(PHOTOS.glob("*.png")), to, as_json))


async def _demo(chosen: Options, photos: list[Path], to: Path, as_json: bool) -> None:
    console = Console(stderr=as_json)
    started_s = time.monotonic()
    display = StartDisplay(console)
    try:
        display.__enter__()
        async with running(chosen, display) as mesh:
            display.__exit__(None, None, None)
            console.print(f"The mesh is ready after {time.monotonic() - started_s:.1f} s at {mesh.url}", highlight=False)
            await asyncio.to_thread(_send_all, console, mesh.url, photos, to, as_json)
    finally:
        display.__exit__(None, None, None)


def _send_all(console: Console, url: str, photos: list[Path], to: Path, as_json: bool) -> None:
    with Client(url) as client:
        # The same detector on two tracks: NMS in the worker, and inside the model. They find the same.
        served = {model["name"] for model in client.models()}
        models = [name for name in ("small", "small_end2end") if name in served] or [""]
        for photo, model in itertools.product(photos, models):
            job = client.detect(photo, model=model)
            if as_json:
                sys.stdout.write(job_to_json(job).decode() + "\n")
            else:
                show(console, photo, job)
            if job.detections is not None and model == models[0]:
                drawn = to / f"{photo.stem}.jpg"
                draw(photo, job.detections, drawn)
                console.print(f"  drawn to [bold]{drawn.resolve()}[/]", highlight=False, soft_wrap=True)

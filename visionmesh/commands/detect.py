"""`visionmesh detect`: whole folders of pictures through the mesh, with what was found written beside them.

photos/  ──▶ detections/results.jsonl   a line per picture; the same command goes on where it stopped
             detections/photos/...      the pictures with their boxes drawn
             detections/coco.json       on --coco
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from visionmesh.client import Client
from visionmesh.commands.submit import CLASSES, CONFIDENCE, DEFAULT_URL, MODEL, URL, show
from visionmesh.drawing import DrawingError, draw
from visionmesh.errors import MeshError
from visionmesh.flows import DetectOptions
from visionmesh.ledger import Ledger, Photo, photos
from visionmesh.results import Result

FEW = 10
INTERRUPTED = 130
_DRAWN_AS_THEY_ARE = frozenset({".jpg", ".jpeg", ".png", ".webp"})


class Run(msgspec.Struct):
    """A run over a folder: how its outcomes are told, and how many there were."""

    console: Console
    drawn: Path | None
    as_json: bool
    few: bool
    """So few that each is shown; else there is a progress bar."""

    done: int = 0
    failed: int = 0
    objects: int = 0

    def take(self, photo: Photo, result: Result, line: bytes) -> None:
        """Tell of a picture's outcome, draw it, and count it."""
        if self.as_json:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
        elif self.few:
            show(Console(), photo.path, result)
        elif not result.ok and result.error:
            self.console.print(f"{photo.name}: {result.error.code}: {result.error.detail}", style="red", markup=False)
        if self.drawn and result.detections is not None:
            self._draw(photo, result, self.drawn)
        self.done += 1
        self.failed += not result.ok
        self.objects += len(result.detections or ())

    def _draw(self, photo: Photo, result: Result, folder: Path) -> None:
        as_it_is = photo.path.suffix.lower() in _DRAWN_AS_THEY_ARE
        try:
            draw(photo.path, result.detections or [], folder / (photo.name if as_it_is else f"{photo.name}.jpg"))
        except DrawingError as error:  # found, but Pillow cannot read it: the line is there
            self.console.print(f"not drawn: {error}", style="yellow", markup=False)


def detect(
    paths: Annotated[list[Path], typer.Argument(help="Pictures, and folders of them.", exists=True)],
    url: URL = DEFAULT_URL,
    model: MODEL = "",
    confidence: CONFIDENCE = None,
    classes: CLASSES = "",
    to: Annotated[Path, typer.Option(help="Folder for what is written.")] = Path("detections"),
    drawn: Annotated[bool, typer.Option("--draw/--no-draw", help="Write copies with the boxes drawn.")] = True,
    coco: Annotated[bool, typer.Option("--coco", help="Write coco.json as well.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also what was done before.")] = False,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Pictures under way at once.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print each picture's line of JSON.")] = False,
) -> None:
    """Find the objects in pictures and folders; go on where the same command stopped. Exit code 1 if a picture failed."""
    found = list(photos(paths, to.resolve()))
    if not found:
        raise typer.BadParameter(f"no picture in {', '.join(map(str, paths))}")
    options = DetectOptions(model=model, confidence=confidence, classes=classes)
    ledger = Ledger(to / "results.jsonl", {name: value for name, value in options.items() if value not in ("", None)})
    todo = [photo for photo in found if again or not ledger.is_done(photo)]
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if len(todo) < len(found):
        console.print(f"{len(found) - len(todo)} of {len(found)} were done before", style="dim")
    run = Run(console, to / "photos" if drawn else None, as_json, few=len(todo) <= FEW)
    goes_on = f"of {len(todo)}; the same command goes on from there"
    try:
        with Client(url) as client, ledger:
            results = client.detect_many([photo.path for photo in todo], concurrency=concurrency, **options)
            _through(run, ledger, todo, results)
    except KeyboardInterrupt:
        console.print(f"stopped after {run.done} {goes_on}")
        os._exit(INTERRUPTED)  # the pictures under way are in the mesh; nobody here waits for them
    except MeshError:
        if run.done:
            console.print(f"stopped after {run.done} {goes_on}")
        raise
    if coco:
        (to / "coco.json").write_bytes(ledger.to_coco(photo.name for photo in found))
    failed = f", {run.failed} failed" if run.failed else ""
    console.print(f"{run.done} pictures, {run.objects} objects{failed}; see {to}", markup=False)
    if run.failed:
        raise typer.Exit(1)


def _through(run: Run, ledger: Ledger, todo: list[Photo], results: Iterator[Result]) -> None:
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TextColumn("{task.fields[failed]}")
    quiet = run.few or not run.console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=run.console, transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=len(todo), failed="", rate="")
        for photo, result in zip(todo, results, strict=True):
            run.take(photo, result, ledger.add(photo, result))
            speed = progress.tasks[0].speed
            failed = f"[red]{run.failed} failed[/]" if run.failed else ""
            progress.update(task, advance=1, failed=failed, rate=f"{speed:.1f}/s" if speed else "")

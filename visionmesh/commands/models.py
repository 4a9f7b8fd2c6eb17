"""`visionmesh models`: what the mesh serves, and detectors of one's own."""

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from deploy.export import adding, configuration, detector, graph, repository
from deploy.export.adding import Wish
from deploy.export.registry_file import RegistryFile
from shared import models
from shared.live_file import FOLLOWED_S
from shared.models import Model, RegistryError
from shared.settings import read
from visionmesh.client import Client
from visionmesh.commands.submit import DEFAULT_URL, URL
from visionmesh.errors import Unreachable
from visionmesh.exchange import Retries

if TYPE_CHECKING:
    from deploy.export.parity import Agreement

PHOTOS = Path(__file__).parents[1] / "photos"
SERVED_WITHIN_S = 60.0
POLL_S = 0.25

Target = StrEnum("Target", list(configuration.TARGETS))
CPU = Target("cpu")

Registry = Annotated[Path | None, typer.Option("--models", help="The models.toml; by default the one that services read.")]
Repository = Annotated[Path | None, typer.Option(help="What Triton serves; by default `repository` beside the models.toml.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(help="The models of the mesh, and detectors of your own.", no_args_is_help=True)


@app.command("list")
def list_models(url: URL = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List the models; of a mesh that runs, with their state in Triton."""
    registry = models.load(read().models)
    live = live_models(url)
    rows = [_row(model, registry, live.get(name)) for name, model in registry.models.items()]
    if as_json:
        sys.stdout.write(msgspec.json.encode(rows).decode() + "\n")
        return
    table = Table("model", "track", "in Triton", "input", "classes", "state", box=None, header_style="dim")
    for row in rows:
        size = f"{row['input_width']}x{row['input_height']}"
        name = row["name"] if row["version"] == 1 else f"{row['name']} v{row['version']}"
        table.add_row(name, row["track"], row["triton_model"], size, str(row["class_count"]), row["state"])
    Console().print(table)
    if not live:
        Console(stderr=True).print(f"no mesh answers at {url}, so this is the registry alone", style="dim", highlight=False)


@app.command()
def show(name: str, url: URL = DEFAULT_URL) -> None:
    """Print everything about one model, as JSON."""
    registry = models.load(read().models)
    model = registry.get(name)
    live = live_models(url).get(model.name)
    if live and live["version"] != model.version:
        live = None
    row = _row(model, registry, live) | msgspec.structs.asdict(model)
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(row), indent=2).decode() + "\n")


@app.command()
def add(
    onnx: Annotated[Path, typer.Argument(help="An ONNX export: YOLOv5 to YOLO26, or of the same layout.")],
    name: Annotated[str, typer.Option(help="What the model is to be called.")],
    labels: Annotated[Path | None, typer.Option(help="Labels, one per line, where the export has none of its own.")] = None,
    input_size: Annotated[str, typer.Option(help="WIDTHxHEIGHT, where the export leaves it open.")] = "",
    max_batch: Annotated[int, typer.Option(min=1, max=1024)] = repository.DEFAULT_MAX_BATCH,
    confidence: Annotated[float | None, typer.Option(min=0, max=1, help="The model's default confidence.")] = None,
    target: Annotated[Target, typer.Option(help="cpu: the embedded Triton; the others: NVIDIA's container.")] = CPU,
    registry_file: Registry = None,
    folder: Annotated[
        Path | None, typer.Option("--repository", help="What Triton serves; by default `repository` beside the models.toml.")
    ] = None,
    url: URL = DEFAULT_URL,
) -> None:
    """Serve a detector of yours: inspect it, build its variants, verify them, and have a mesh that runs load them."""
    console = Console(highlight=False, soft_wrap=True)
    wish = wish_of(
        name, onnx, registry_file, folder,
        target=target, max_batch=max_batch, input_size=input_size, labels=labels, confidence=confidence,
    )  # fmt: skip
    served = adding.add(wish, photos(), lambda line: console.print(line))
    names = [each.triton_model for each in served]
    console.print(f"added {', '.join(names)} to {wish.registry}")
    if target.value == "tensorrt":
        say_plans(console, wish)
    elif not live_models(url):
        console.print("`visionmesh up` serves it")
    else:
        _await_served(console, url, names)


@app.command()
def verify(
    name: str,
    url: URL = DEFAULT_URL,
    here: Annotated[bool, typer.Option("--here", help="Run the graph in this process; no mesh is asked.")] = False,
    pictures: Annotated[list[Path] | None, typer.Option("--picture", help="Pictures of yours instead of our photos.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare what a model finds with what a plain reference finds. Exit code 1 if they do not agree."""
    registry = models.load(read().models)
    model = registry.get(name)
    source = detector.load(adding.source_of(model), input_size=(model.input_width, model.input_height), labels=model.labels)
    chosen = {picture.name: picture.read_bytes() for picture in pictures} if pictures else photos()
    if here:
        rows = adding.agreements(model, source, _graph(model, source), chosen)
    else:
        from deploy.export import parity
        from deploy.export.reference import Reference

        reference, limit = Reference(source), parity.LIMITS[model.track]
        with Client(url) as client:
            rows = [
                parity.compare(
                    label,
                    parity.wanted(reference, picture, model),
                    client.detect(picture, model=name, confidence=parity.ASKED_CONFIDENCE).detections or [],
                    limit,
                )
                for label, picture in chosen.items()
            ]
    if as_json:
        sys.stdout.write(msgspec.json.encode(rows).decode() + "\n")
    else:
        _show_agreements(Console(highlight=False), model, rows)
    if any(row.missed for row in rows):
        raise typer.Exit(1)


@app.command()
def load(name: str, registry_file: Registry = None, url: URL = DEFAULT_URL) -> None:
    """Have Triton load a model that was unloaded."""
    _keep(name, registry_file, loaded=True)
    if live_models(url):
        _await_served(Console(highlight=False, soft_wrap=True), url, [models.load(places(registry_file)[0]).get(name).name])


@app.command()
def unload(name: str, registry_file: Registry = None) -> None:
    """Take a model out of Triton; jobs for it are refused until it is loaded again."""
    _keep(name, registry_file, loaded=False)


@app.command()
def remove(
    name: str,
    registry_file: Registry = None,
    folder: Annotated[Path | None, typer.Option("--repository", help="Where it was added to.")] = None,
) -> None:
    """Take a model that was added, with all its variants and files, out of the registry."""
    registry, place = places(registry_file, folder)
    gone = adding.remove(registry, place, name)
    time.sleep(FOLLOWED_S)
    Console(highlight=False, soft_wrap=True).print(f"removed {', '.join(gone)} from {registry}")


def photos() -> dict[str, bytes]:
    """The pictures that models are verified with."""
    return {file.name: file.read_bytes() for file in sorted(PHOTOS.glob("*.png"))}


def _graph(model: Model, source: detector.Detector) -> bytes | Path:
    file = models.repository_of(models.file_of(read().models)) / model.triton_model / "1" / "model.onnx"
    if model.source and file.is_file():
        return file
    made = graph.plain(source) if model.head == "yolo" else graph.end2end(source)
    return made.SerializeToString()


def places(registry_file: Path | None, folder: Path | None = None) -> tuple[Path, Path]:
    """The registry file to write, and the repository beside it or elsewhere."""
    registry = registry_file or Path(read().models or models.user_file() or "")
    if not registry.name:
        raise RegistryError("there is no home folder to keep models in; say --models FILE or set MESH_MODELS")
    return registry, folder or models.repository_of(registry)


def wish_of(
    name: str,
    onnx: Path,
    registry_file: Path | None,
    folder: Path | None,
    *,
    target: Target,
    max_batch: int,
    input_size: str,
    labels: Path | None,
    confidence: float | None = None,
) -> Wish:
    """What the options of `add` and `update` ask for.

    Raises:
        BadParameter: the embedded Triton, which is meant where no folder is named, does not run such models.
    """
    registry, place = places(registry_file, folder)
    if target is not CPU and folder is None:
        raise typer.BadParameter(
            f"the embedded Triton runs no {target.value} models; say --repository, the folder of your Triton"
        )
    return Wish(
        name=name, onnx=onnx, registry=registry, repository=place, target=target.value, max_batch=max_batch,  # type: ignore[arg-type]
        input_size=size_of(input_size), labels=detector.read_labels(labels) if labels else None, confidence=confidence,
    )  # fmt: skip


def say_plans(console: Console, wish: Wish) -> None:
    """Say that the models are built, but not their TensorRT plans."""
    console.print(f"now build the plans on the GPU's machine: {wish.repository}/build-plans.sh says how")


def _keep(name: str, registry_file: Path | None, *, loaded: bool) -> None:
    registry, _ = places(registry_file)
    file = RegistryFile(registry)
    known = models.load(registry) if registry.is_file() else models.load()
    model = known.get(name)
    file.keep(model.name, loaded=loaded)
    file.save()
    time.sleep(FOLLOWED_S)
    Console(highlight=False, soft_wrap=True).print(
        f"{model.name} is to be {'loaded' if loaded else 'unloaded'}, says {registry}"
    )


def size_of(text: str) -> tuple[int, int] | None:
    """Width and height of `--input-size`; `None` where none is given."""
    if not text:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise typer.BadParameter(f"--input-size {text!r} is not WIDTHxHEIGHT, as in 640x640")
    return int(width), int(height)


def live_models(url: str) -> dict[str, dict[str, Any]]:
    """The models of a mesh that runs, by name; empty where none answers."""
    try:
        with Client(url, retries=Retries(at_most=0)) as client:
            return {model["name"]: model for model in client.models()}
    except Unreachable:
        return {}


def _row(model: Model, registry: models.Registry, live: dict[str, Any] | None) -> dict[str, Any]:
    state = "unloaded" if model.name in registry.unloaded else ""
    if live:
        said = live.get("triton") or {}
        state = state or (
            "ready" if live["ready"] else " ".join([said.get("state", "not ready").lower(), said.get("reason", "")])
        )
    return {
        "name": model.name,
        "version": model.version,
        "track": model.track,
        "triton_model": model.triton_model,
        "input_width": model.input_width,
        "input_height": model.input_height,
        "class_count": len(model.labels),
        "state": state.strip(),
    }


def _await_served(console: Console, url: str, names: list[str]) -> None:
    deadline_s = time.monotonic() + SERVED_WITHIN_S
    time.sleep(FOLLOWED_S)  # another gateway process than the one that answers us may not have looked yet
    with console.status("waiting for the mesh to load it"):
        while missing := [name for name in names if not live_models(url).get(name, {}).get("ready")]:
            if time.monotonic() > deadline_s:
                console.print(f"the mesh at {url} does not serve {', '.join(missing)} yet; `visionmesh models list` says why")
                raise typer.Exit(1)
            time.sleep(POLL_S)
    console.print(f"served at {url}: curl -F image=@photo.jpg {url}/predict/{names[0]}")


def _show_agreements(console: Console, model: Model, rows: "list[Agreement]") -> None:
    from deploy.export import parity

    table = Table("picture", "reference finds", "least IoU", "confidence off by", "missed", box=None, header_style="dim")
    for row in rows:
        missed = "; ".join(row.missed) or "-"
        table.add_row(row.picture, str(row.wanted), f"{row.worst_iou:.3f}", f"{row.worst_confidence:.3f}", missed)
    console.print(table)
    verdict = "[red]does not agree" if any(row.missed for row in rows) else "[green]agrees"
    limit = parity.LIMITS[model.track]
    console.print(
        f"{model.name} (track {model.track}) {verdict}[/] with the reference: IoU at least {limit.iou}, "
        f"confidence within {limit.confidence}, of all that is found with at least {parity.LEAST_CONFIDENCE}"
    )

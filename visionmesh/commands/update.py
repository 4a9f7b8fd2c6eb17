"""`visionmesh models update`: a new version of a model, without an outage.

beside the old one ─▶ loaded by the mesh ─▶ asked, and compared with the reference ─▶ switched to ─▶ the old one drains ─▶ gone
                            └── does not load, or does not find what it should ─▶ taken away again, nothing has changed
"""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from deploy.export import repository, updating
from deploy.export.errors import ParityError
from deploy.export.updating import Update
from shared.errors import ModelUnavailable
from shared.live_file import FOLLOWED_S
from visionmesh.client import Client
from visionmesh.commands.models import (
    CPU,
    POLL_S,
    SERVED_WITHIN_S,
    Registry,
    Target,
    app,
    live_models,
    photos,
    places,
    say_plans,
    wish_of,
)
from visionmesh.commands.submit import DEFAULT_URL, URL

DRAINED_WITHIN_S = 600.0
"""No job may wait longer than its deadline, so this is only for a mesh that stands still."""


@app.command()
def update(
    name: Annotated[str, typer.Argument(help="The model, as it was added or is built in.")],
    onnx: Annotated[Path, typer.Argument(help="The new ONNX export.")],
    labels: Annotated[Path | None, typer.Option(help="Labels, one per line, where the export has none of its own.")] = None,
    input_size: Annotated[str, typer.Option(help="WIDTHxHEIGHT, where the export leaves it open.")] = "",
    max_batch: Annotated[int, typer.Option(min=1, max=1024)] = repository.DEFAULT_MAX_BATCH,
    target: Annotated[Target, typer.Option(help="cpu: the embedded Triton; the others: NVIDIA's container.")] = CPU,
    within: Annotated[float, typer.Option(min=1, help="Seconds that the mesh may take to load it.")] = SERVED_WITHIN_S,
    registry_file: Registry = None,
    folder: Annotated[Path | None, typer.Option("--repository", help="Where the model was added to.")] = None,
    url: URL = DEFAULT_URL,
) -> None:
    """Replace a model by a new version of it while the mesh runs: no request fails, and a bad version changes nothing."""
    console = Console(highlight=False, soft_wrap=True)
    wish = wish_of(name, onnx, registry_file, folder, target=target, max_batch=max_batch, input_size=input_size, labels=labels)
    changed = updating.prepare(wish, photos(), lambda line: console.print(line))
    is_live = bool(live_models(url))
    try:
        if is_live:
            with Client(url) as client:
                client.health()  # the end is seen there, so a key that may not read it is better known now
                if target.value == "tensorrt":
                    say_plans(console, wish)
                with console.status("waiting for the mesh to load it"):
                    _await_loaded(client, changed, within, fails_early=target.value != "tensorrt")
                _check(client, changed)
                console.print(f"{', '.join(changed.new)} loaded and asked at {url}")
        changed.switch()
    except BaseException:
        changed.undo()
        raise
    console.print(f"{', '.join(changed.new)} is what new jobs get")
    if is_live:
        with Client(url) as client, console.status("waiting for the old version's jobs to end"):
            _await_drained(client, changed)
    changed.finish()
    time.sleep(FOLLOWED_S)
    console.print(f"{', '.join(_versions(changed))} is gone")


@app.command()
def tidy(
    name: str,
    registry_file: Registry = None,
    folder: Annotated[Path | None, typer.Option("--repository", help="Where the model was added to.")] = None,
) -> None:
    """Take away what an update that was broken off left beside a model."""
    gone = updating.tidy(*places(registry_file, folder), name)
    Console(highlight=False, soft_wrap=True).print(f"took away {', '.join(gone)}" if gone else f"nothing is beside {name}")


def _versions(changed: Update) -> list[str]:
    return [f"{model.name}@{model.version}" for model in changed.old.values()]


def _await_loaded(client: Client, changed: Update, within_s: float, *, fails_early: bool) -> None:
    """Wait until the mesh can run all of the new version.

    Raises:
        ModelUnavailable: Triton cannot load it, or not in time.
    """
    deadline_s = time.monotonic() + within_s
    time.sleep(FOLLOWED_S)
    for key in changed.new:
        while not (described := client.model(key))["ready"]:
            said: dict[str, Any] = described.get("triton") or {}
            if fails_early and said.get("state") == "UNAVAILABLE" and said.get("reason"):
                raise ModelUnavailable(f"Triton cannot load {key}: {said['reason']}; nothing has changed")
            if time.monotonic() > deadline_s:
                why = " ".join([said.get("state", "not known").lower(), said.get("reason", "")]).strip()
                raise ModelUnavailable(f"the mesh has not loaded {key} within {within_s:g} s ({why}); nothing has changed")
            time.sleep(POLL_S)


def _check(client: Client, changed: Update) -> None:
    """Ask the new version, through the mesh, about our photos; this warms it as well.

    Raises:
        ParityError: it does not find what the plain reference finds.
    """
    from deploy.export import parity
    from deploy.export.reference import Reference

    reference = Reference(changed.detector)
    for key, model in changed.new.items():
        for label, picture in photos().items():
            found = client.detect(picture, model=key, confidence=parity.ASKED_CONFIDENCE).detections or []
            row = parity.compare(label, parity.wanted(reference, picture, model), found, parity.LIMITS[model.track])
            if row.missed:
                raise ParityError(f"{key} in the mesh, on {label}: {row.missed[0]}; nothing has changed")


def _await_drained(client: Client, changed: Update) -> None:
    """Wait until all jobs that were accepted with the old version have ended.

    Raises:
        ModelUnavailable: they do not end.
    """
    time.sleep(FOLLOWED_S)
    since_s = time.monotonic()
    while True:
        queues = client.health()["queues"]
        left = [queues[f"inference:{model.served_as}"] for model in changed.old.values()]
        count = sum(depth["waiting"] + depth["in_progress"] for depth in left)
        for_s = time.monotonic() - since_s
        if not count and queues["preprocess"]["oldest_age_ms"] < for_s * 1000:
            return
        if for_s > DRAINED_WITHIN_S:
            left_of = f"{', '.join(_versions(changed))} still has {count} jobs"
            raise ModelUnavailable(f"{left_of}; `visionmesh models tidy {changed.name}` takes it away when they have ended")
        time.sleep(POLL_S)

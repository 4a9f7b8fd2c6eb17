"""A detector of the user's, from an ONNX file to rows that a mesh serves.

    ONNX ─▶ inspected ─▶ written beside the repository ─▶ verified ─▶ moved in ─▶ rows in the registry file

A mesh that runs follows the registry file: its inference workers have Triton load what is new. Until the last step nothing
that is served has changed, and what fails on the way leaves nothing behind.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from deploy.export import repository
from deploy.export.configuration import Target
from deploy.export.detector import Detector, load
from deploy.export.errors import ExportError, ParityError
from deploy.export.registry_file import RegistryFile
from deploy.export.repository import DEFAULT_MAX_BATCH, DEFAULT_ONNX, Served
from shared import models
from shared.models import Model, RegistryError

if TYPE_CHECKING:
    from deploy.export.parity import Agreement

Telling = Callable[[str], None]


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be added, and where: the registry file, and the folder that Triton serves."""

    name: str
    onnx: Path
    registry: Path
    repository: Path
    target: Target = "cpu"
    max_batch: int = DEFAULT_MAX_BATCH
    input_size: tuple[int, int] | None = None
    labels: list[str] | None = None
    family: str = "yolo"
    confidence: float | None = None


def add(wish: Wish, pictures: dict[str, bytes], tell: Telling = lambda _: None) -> list[Served]:
    """Do all of it; returns the models that were made.

    Raises:
        ExportError: the ONNX file cannot be served, or a folder not be written.
        RegistryError: the name cannot be taken, or the registry file is wrong.
        ParityError: the served graphs do not agree with the plain reference on these pictures.
    """
    if not models.NAME.fullmatch(wish.name):
        raise RegistryError(f"{wish.name!r} is no name for a model; letters, digits, '_', '.' and '-' are taken")
    detector = load(wish.onnx, input_size=wish.input_size, labels=wish.labels)
    size = f"{detector.input_width}x{detector.input_height}"
    tell(f"{wish.onnx.name}: {detector.layout} layout, {size}, {detector.class_count} classes")
    file = RegistryFile(wish.registry)
    taken = {wish.name, f"{wish.name}_end2end"} & set(file.names)
    if taken:
        raise RegistryError(
            f"{wish.registry} has {', '.join(sorted(taken))} already; `visionmesh models remove {wish.name}` first"
        )
    try:
        wish.repository.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".adding-", dir=wish.repository.parent) as name:
            served = repository.write(Path(name), detector, wish.name, target=wish.target, max_batch=wish.max_batch)
            if wish.target != "tensorrt":  # a plan is built on the GPU's own machine
                verify(detector, served, Path(name), pictures, tell)
            move(Path(name), wish.repository)
        source = wish.registry.parent / "sources" / f"{wish.name}.onnx"
        source.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(wish.onnx, source)
    except OSError as error:
        raise ExportError(f"{error.filename or wish.repository}: cannot be written ({error.strerror})") from None
    file.add(wish.name, detector, served, family=wish.family, confidence=wish.confidence)
    file.save()
    return served


def remove(registry: Path, folder: Path, name: str) -> list[str]:
    """Take a model that was added, all its variants, out again; returns their names.

    Raises:
        RegistryError: it is not in this file.
        ExportError: a folder cannot be removed.
    """
    file = RegistryFile(registry)
    made = file.made_from(name)
    gone = made or [name]
    if not set(gone) <= set(file.names):
        raise RegistryError(f"{registry} has no model {name!r}; a built-in one can be unloaded")
    served = models.load(registry).served
    file.remove({*gone, name})
    file.save()
    try:
        for model in served.values():
            if model.name in gone:
                forget_files(model, folder)
        (registry.parent / "sources" / f"{name}.onnx").unlink(missing_ok=True)
    except OSError as error:
        raise ExportError(f"{error.filename}: cannot be removed ({error.strerror})") from None
    return gone


def forget_files(model: Model, folder: Path) -> None:
    """Remove what Triton was served of a model, and the export that it was made from.

    Raises:
        OSError: a file cannot be removed.
    """
    if model.triton_model and (folder / model.triton_model).is_dir():
        shutil.rmtree(folder / model.triton_model, ignore_errors=True)
    if model.source and Path(model.source).parent.name == "sources":
        Path(model.source).unlink(missing_ok=True)


def source_of(model: Model) -> Path:
    """The export that a model was made from.

    Raises:
        ExportError: it is not known or not there.
    """
    path = Path(model.source) if model.source else DEFAULT_ONNX
    if not model.source and model.family != "ssdlite":
        raise ExportError(f"model {model.name!r} names no source in the registry, so there is nothing to compare it with")
    if not path.is_file():
        raise ExportError(f"{path}: the source of model {model.name!r} is not there")
    return path


def agreements(model: Model, detector: Detector, graph: bytes | Path, pictures: dict[str, bytes]) -> "list[Agreement]":
    """How a served graph compares with the reference, in this process, a row for each picture.

    Raises:
        ExportError: one of the two does not run.
    """

    # Only here: they need what runs the mesh itself, which a machine with nothing but the command line lacks.
    from deploy.export import parity
    from deploy.export.reference import Reference

    async def compare() -> "list[Agreement]":
        reference = Reference(detector)
        async with parity.Locally(model, graph) as served:
            return [
                parity.compare(
                    name, parity.wanted(reference, picture, model), await served.detect(picture), parity.LIMITS[model.track]
                )
                for name, picture in pictures.items()
            ]

    return asyncio.run(compare())


def verify(detector: Detector, served: Sequence[Served], folder: Path, pictures: dict[str, bytes], tell: Telling) -> None:
    """See that what was written into `folder` finds what the plain reference finds.

    Raises:
        ParityError: it does not.
        ExportError: one of the two does not run.
    """
    for variant in served:
        row = {"input_width": detector.input_width, "input_height": detector.input_height, "labels": detector.labels}
        row |= {
            "name": variant.triton_model,
            "track": variant.track,
            "triton_model": variant.triton_model,
            "head": variant.head,
        }
        model = msgspec.convert(row, Model)
        rows = agreements(model, detector, folder / variant.triton_model / "1" / "model.onnx", pictures)
        for row in rows:
            if row.missed:
                raise ParityError(f"{variant.triton_model} on {row.picture}: {row.missed[0]}")
        wanted = sum(row.wanted for row in rows)
        tell(f"{variant.triton_model} (track {variant.track}): finds all {wanted} that the plain reference finds in our photos")


def move(made: Path, folder: Path) -> None:
    """Move what was written in one folder into the repository."""
    for entry in sorted(made.iterdir()):
        target = folder / entry.name
        if target.is_dir() and entry.name == "build":
            shutil.copytree(entry, target, dirs_exist_ok=True)
            continue
        if target.is_dir():
            shutil.rmtree(target)  # no row names it: what a removal could not take away
        entry.rename(target)

"""A new version of a model that is served: put beside the old one, switched to, and the old one taken away.

    ONNX ─▶ verified ─▶ prepare: NAME@2 beside NAME ─▶ (a mesh loads it; it is asked) ─▶ switch ─▶ (NAME drains) ─▶ finish
                                                                └─ it does not answer ─▶ undo

Each step is one replacement of the registry file, so a service sees the models before it or after it. What is in between, and
knows of a mesh that runs, is in `visionmesh.commands.update`.
"""

import re
import shutil
import tempfile
from pathlib import Path

import msgspec

from deploy.export import adding, repository
from deploy.export.adding import Telling, Wish
from deploy.export.detector import Detector, load
from deploy.export.errors import ExportError
from deploy.export.registry_file import RegistryFile
from deploy.export.repository import Served
from shared import models
from shared.models import Model, Registry, RegistryError


class Update(msgspec.Struct, frozen=True):
    """A version that is beside the one that new jobs get. `new` are its rows and `old` the ones they replace, by the new one's
    NAME@VERSION."""

    name: str
    registry: Path
    repository: Path
    detector: Detector
    new: dict[str, Model]
    old: dict[str, Model]

    def switch(self) -> None:
        """Have new jobs get the new version.

        Raises:
            RegistryError: the registry file cannot be changed.
        """
        file = RegistryFile(self.registry)
        file.switch(self.new, self.old)
        file.save()

    def finish(self) -> None:
        """Take the old version away, rows and files."""
        self._forget({f"{model.name}@{model.version}": model for model in self.old.values()})

    def undo(self) -> None:
        """Take the new version away, rows and files: nothing has changed."""
        self._forget(self.new)

    def _forget(self, gone: dict[str, Model]) -> None:
        _forget(self.registry, self.repository, gone)


def prepare(wish: Wish, pictures: dict[str, bytes], tell: Telling = lambda _: None) -> Update:
    """Build a new version of the model `wish.name` and put it beside the present one.

    Raises:
        ExportError, ParityError: see `adding.add`; or the new export has other variants than the old one.
        RegistryError: there is no such model, or another version of it is beside it.
    """
    known = models.load(wish.registry) if wish.registry.is_file() else models.load()
    old = _variants(known, wish)
    left = sorted(key for key, model in known.beside.items() if model.name in old)
    if left:
        raise RegistryError(
            f"{', '.join(left)} is beside {wish.name!r}: another update runs, or one was broken off and "
            f"`visionmesh models tidy {wish.name}` takes away what is left of it"
        )
    ensembles = sorted(wish.repository.glob(f"{wish.name}_gpu_e2e*"))
    if ensembles:
        raise ExportError(f"{ensembles[0].name} (track D) is built upon this version of {wish.name!r}; remove it first")
    detector = load(wish.onnx, input_size=wish.input_size, labels=wish.labels)
    size = f"{detector.input_width}x{detector.input_height}"
    tell(f"{wish.onnx.name}: {detector.layout} layout, {size}, {detector.class_count} classes")
    version = _next(wish.repository, [model.version for model in old.values()])
    source_name = f"{wish.name}@{version}"
    file = RegistryFile(wish.registry)
    new: dict[str, Served] = {}
    try:
        wish.repository.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".adding-", dir=wish.repository.parent) as name:
            served = repository.write(
                Path(name), detector, wish.name, target=wish.target, max_batch=wish.max_batch, version=version
            )
            new = {each.triton_model: each for each in served}
            _check_variants(wish.onnx.name, new, old)
            if wish.target != "tensorrt":  # a plan is built on the GPU's own machine
                adding.verify(detector, served, Path(name), pictures, tell)
            adding.move(Path(name), wish.repository)
        source = wish.registry.parent / "sources" / f"{source_name}.onnx"
        source.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(wish.onnx, source)
        before = {key: old[key.rpartition("@")[0]] for key in new}
        file.add_beside(source_name, detector, new, before)
        file.save()
    except BaseException as error:
        for key in new:
            shutil.rmtree(wish.repository / key, ignore_errors=True)
        if isinstance(error, OSError):
            raise ExportError(f"{error.filename or wish.repository}: cannot be written ({error.strerror})") from None
        raise
    rows = models.load(wish.registry).beside
    return Update(wish.name, wish.registry, wish.repository, detector, {key: rows[key] for key in new}, before)


def tidy(registry: Path, folder: Path, name: str) -> list[str]:
    """Take away what an update that was broken off left beside a model; returns the versions as NAME@VERSION.

    Raises:
        RegistryError: the registry file is wrong.
    """
    known = models.load(registry)
    gone = {f"{each.name}@{each.version}": each for each in known.beside.values() if each.name in (name, f"{name}_end2end")}
    _forget(registry, folder, gone)
    return sorted(gone)


def _forget(registry: Path, folder: Path, gone: dict[str, Model]) -> None:
    file = RegistryFile(registry)
    file.drop_beside(gone)
    file.save()
    try:
        for model in gone.values():
            adding.forget_files(model, folder)
    except OSError as error:
        raise ExportError(f"{error.filename}: cannot be removed ({error.strerror})") from None


def _variants(known: Registry, wish: Wish) -> dict[str, Model]:
    """The rows of a model that an export makes, by name.

    Raises:
        RegistryError: there are none.
    """
    rows = {name: known.models[name] for name in (wish.name, f"{wish.name}_end2end") if name in known.models}
    if not rows:
        raise RegistryError(f"{wish.registry} has no model {wish.name!r}; `visionmesh models add` brings a new one")
    return rows


def _check_variants(file_name: str, new: dict[str, Served], old: dict[str, Model]) -> None:
    has, wanted = sorted(key.rpartition("@")[0] for key in new), sorted(old)
    if has != wanted:
        raise ExportError(f"{file_name} makes {', '.join(has)}, but what is served is {', '.join(wanted)}")


def _next(folder: Path, versions: list[int]) -> int:
    """A version that none has had whose files are still there."""
    there = [int(found[1]) for entry in folder.glob("*@*") if (found := re.fullmatch(r".+@(\d+)", entry.name))]
    return max([*versions, *there]) + 1

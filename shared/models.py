"""The registry: which models the mesh serves, a row each, read from a `models.toml`.

    MESH_MODELS ─▶ that file          else ─▶ the user's own, where `visionmesh models add` has made one          else ─▶ the
                                                                                              built-in one beside this module

A model has several versions while one replaces another: new jobs get the row of its name, those of `[beside."NAME@VERSION"]`
are served as well. Each has a queue of its own, and a job stays with the version it was accepted with.

A file that says `builtin = true` adds to the built-in models, and its rows win. What can be asked of Triton itself (dtype,
layout, batch limit) is not repeated here; what a service must know without Triton is. `shared.live_registry` follows a file
while a service runs.
"""

import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from shared.errors import InvalidParameter, UnknownModel

DEFAULT_FILE = Path(__file__).with_name("models.toml")

TORCH_SUFFIXES = (".pt2", ".pt", ".torchscript")
"""Files of track A: `torch.export`, and two usual names of TorchScript."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
"""What a model may be called: it is part of URLs, of Redis keys and of folders."""

Side = Annotated[int, Meta(ge=32, le=8192)]
Share = Annotated[float, Meta(ge=0, le=1)]


class RegistryError(Exception):
    """The registry cannot be used. The message is one line that names the file and the entry."""


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One servable model.

    `input_width` x `input_height` are pixels of the letterboxed input; `head` names how the output is read
    (`inference_worker.heads`); the thresholds are defaults that a request may override. Track A names the file that PyTorch
    runs, relative to the registry's own folder; the others name a model of Triton.
    """

    name: str = ""
    version: Annotated[int, Meta(ge=1)] = 1
    family: str = "yolo"
    track: Literal["A", "B", "C", "D"] = "B"
    triton_model: str = ""
    torch_file: str = ""
    input_width: Side
    input_height: Side
    head: Literal["yolo", "end2end"] = "yolo"
    labels: list[str] = []
    confidence: Share = 0.4
    iou: Share = 0.45
    max_detections: Annotated[int, Meta(ge=1, le=3000)] = 300
    max_batch: Annotated[int, Meta(ge=1, le=1024)] = 8
    source: str = ""
    """The ONNX export it was made from; in the file relative to its folder. `visionmesh models verify` compares with it."""

    @property
    def served_as(self) -> str:
        """What tells this version from others of the model: the name of its queue. The first has the model's own name."""
        return self.name if self.version == 1 else f"{self.name}@{self.version}"

    @property
    def tensor_bytes(self) -> int:
        """Size of one uint8 RGB input tensor in bytes."""
        return self.input_width * self.input_height * 3

    def label(self, class_id: int) -> str:
        """The class's name, or its number where the registry has no name for it."""
        return self.labels[class_id] if 0 <= class_id < len(self.labels) else str(class_id)

    def class_ids(self, names: Sequence[str]) -> list[int]:
        """Names or ids as ids.

        Raises:
            InvalidParameter: a name is not a label of this model.
        """
        ids: list[int] = []
        for name in names:
            if name.isdecimal() and int(name) < max(len(self.labels), 1):
                ids.append(int(name))
            elif name in self.labels:
                ids.append(self.labels.index(name))
            else:
                raise InvalidParameter(f"classes: {name!r} is not a class of model {self.name!r}")
        return sorted(set(ids))


class Registry(msgspec.Struct, frozen=True):
    """All models by name, the spellings that stand for them, those that are not to be loaded at present, and by `served_as` the
    versions that are served beside those that new jobs get."""

    models: dict[str, Model]
    aliases: dict[str, str] = {}
    unloaded: frozenset[str] = frozenset()
    beside: dict[str, Model] = {}

    @property
    def served(self) -> dict[str, Model]:
        """All versions of all models, by `served_as`."""
        return {model.served_as: model for model in self.models.values()} | self.beside

    def get(self, name: str) -> Model:
        """The model of this name or alias; `NAME@VERSION` is one of its versions.

        Raises:
            UnknownModel: there is none.
        """
        model = self.models.get(self.aliases.get(name, name))
        if model is None and "@" in name:
            model = next((each for each in self.served.values() if f"{each.name}@{each.version}" == name), None)
        if model is None:
            raise UnknownModel(f"no model {name!r}; this mesh serves {', '.join(sorted(self.models))}")
        return model


class _File(msgspec.Struct, forbid_unknown_fields=True):
    models: dict[str, Model] = {}
    beside: dict[str, Model] = {}
    aliases: dict[str, str] = {}
    labels: dict[str, list[str]] = {}
    unloaded: list[str] = []
    builtin: bool = False


def user_file() -> Path | None:
    """Where `visionmesh models add` keeps the user's own registry if `MESH_MODELS` names none; `None` without a home."""
    try:
        folder = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
    except RuntimeError:
        return None
    return folder / "visionmesh" / "models.toml"


def file_of(setting: str | Path) -> Path:
    """The file that `MESH_MODELS` means; empty, it means the user's own where there is one, else the built-in one."""
    if setting:
        return Path(setting)
    own = user_file()
    try:
        return own if own and own.is_file() else DEFAULT_FILE
    except OSError:  # a home that may not be looked into
        return DEFAULT_FILE


def repository_of(file: Path) -> Path:
    """The folder of what Triton serves of a registry file's own models."""
    return file.parent / "repository"


def load(setting: str | Path = "") -> Registry:
    """Read the registry that `MESH_MODELS` means.

    Raises:
        RegistryError: the file is missing, is not TOML, or an entry is wrong.
    """
    file = file_of(setting)
    try:
        parsed = msgspec.convert(tomllib.loads(file.read_text("utf-8")), _File)
    except OSError as error:
        raise RegistryError(f"{file}: cannot be read ({error.strerror}); set MESH_MODELS to a models.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise RegistryError(f"{file}: {error}") from None
    models: dict[str, Model] = {}
    for name, model in parsed.models.items():
        if not NAME.fullmatch(name):
            raise RegistryError(f"{file}: models.{name!r} is no name; letters, digits, '_', '.' and '-' are taken")
        models[name] = _row(file, f"models.{name}", msgspec.structs.replace(model, name=name), parsed.labels)
    aliases = parsed.aliases
    if parsed.builtin and file != DEFAULT_FILE:
        base = load(DEFAULT_FILE)
        models = {name: model for name, model in base.models.items() if name not in aliases} | models
        theirs = {alias: aliases.get(name, name) for alias, name in base.aliases.items() if alias not in models}
        aliases = theirs | aliases
    if not models:
        raise RegistryError(f"{file}: names no model; add a [models.NAME] table")
    for alias, name in aliases.items():
        if name not in models:
            raise RegistryError(f"{file}: aliases.{alias} names {name!r}, which is no model of the file")
    for name in parsed.unloaded:
        if name not in models:
            raise RegistryError(f"{file}: unloaded names {name!r}, which is no model of the file")
    return Registry(models, aliases, frozenset(parsed.unloaded), _beside(file, parsed, models))


def _beside(file: Path, parsed: _File, models: dict[str, Model]) -> dict[str, Model]:
    rows: dict[str, Model] = {}
    for key, model in parsed.beside.items():
        name, _, version = key.rpartition("@")
        if name not in models or not version.isdecimal() or int(version) in (0, models[name].version):
            raise RegistryError(f"{file}: beside.{key!r} is no NAME@VERSION of another version of a model of the file")
        row = _row(file, f"beside.{key}", msgspec.structs.replace(model, name=name, version=int(version)), parsed.labels)
        rows[row.served_as] = row
    return rows


def _row(file: Path, place: str, model: Model, all_labels: dict[str, list[str]]) -> Model:
    """A row with its labels and its paths looked up."""
    labels = model.labels
    if len(labels) == 1 and labels[0].startswith("@"):
        if labels[0][1:] not in all_labels:
            raise RegistryError(f"{file}: {place}.labels names {labels[0]!r}, which [labels] does not hold")
        labels = all_labels[labels[0][1:]]
    if wrong := _wrong_place(model):
        raise RegistryError(f"{file}: {place} {wrong}")
    source = str(file.parent / model.source) if model.source else ""
    torch_file = str(file.parent / model.torch_file) if model.torch_file else ""
    return msgspec.structs.replace(model, labels=labels, source=source, torch_file=torch_file)


def _wrong_place(model: Model) -> str:
    """What is wrong about where a model runs, or nothing."""
    if model.track != "A":
        if model.torch_file:
            return f"is of track {model.track}, which runs in Triton; only track A has a torch_file"
        return "" if model.triton_model else "names no triton_model"
    if model.triton_model:
        return "is of track A, which runs in the worker's own PyTorch; it has a torch_file and no triton_model"
    if Path(model.torch_file).suffix not in TORCH_SUFFIXES:
        return f"must name a torch_file that ends in {', '.join(TORCH_SUFFIXES)}"
    return "" if model.head == "yolo" else "is of track A, whose NMS is in the worker; its head must be yolo"

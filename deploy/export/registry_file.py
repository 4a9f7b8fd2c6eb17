"""A registry file that is changed by commands: rows come and go, what else a person wrote there stays.

    folder/models.toml          the rows; `builtin = true` keeps the built-in models beside them
    folder/repository/NAME/     what Triton serves of each (`deploy.export.repository`)
    folder/sources/NAME.onnx    the export that it was made from

A later version of a model is NAME@VERSION in the folders; while one replaces another, `[beside."NAME@VERSION"]` holds the row
that new jobs do not get.

A change is written beside the file and moved over it, so a service that follows the file never sees half of one.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from deploy.export.detector import Detector
from deploy.export.repository import Served
from shared import models
from shared.models import Model, RegistryError

_HEAD = """Models of this mesh besides the built-in ones, written by `visionmesh models`. Edit it: services follow it.
docs/models.md explains every field."""

PREDECESSOR = {"": "_trt", "_end2end": "_trt_end2end"}
"""How the predecessor spelled a variant: the end of its name here, and there."""

_KEPT = ("family", "confidence", "iou", "max_detections")
"""What a new version has of the old one: how it is asked, not what it is."""


class RegistryFile:
    """One file. Nothing is written before `save`."""

    def __init__(self, path: Path) -> None:
        """Read it, or begin a new one.

        Raises:
            RegistryError: it cannot be read or is no TOML.
        """
        self.path = path
        try:
            self._document = tomlkit.parse(path.read_text("utf-8"))
        except FileNotFoundError:
            self._document = tomlkit.document()
            for line in _HEAD.splitlines():
                self._document.add(tomlkit.comment(line))
            self._document.add("builtin", tomlkit.item(True))
        except (OSError, UnicodeDecodeError, TOMLKitError) as error:
            raise RegistryError(f"{path}: {error}") from None

    @property
    def names(self) -> list[str]:
        """The models whose rows are in this file itself."""
        return list(self._document.get("models", {}))

    def made_from(self, source_name: str) -> list[str]:
        """The rows that came from one export, by the name it was added under."""
        rows: dict[str, Any] = self._document.get("models", {})
        found: list[str] = []
        for name, row in rows.items():
            made_from = Path(str(row.get("source", ""))).stem
            if row.get("source") == f"sources/{made_from}.onnx" and made_from.partition("@")[0] == source_name:
                found.append(name)
        return found

    def add(self, name: str, detector: Detector, served: Sequence[Served], *, family: str, confidence: float | None) -> None:
        """Rows for the variants of a detector, its labels once, and the predecessor's spellings of them."""
        self._table("labels")[name] = detector.labels
        for variant in served:
            row = _row(name, detector, variant)
            row["family"] = family
            if confidence is not None:
                row["confidence"] = confidence
            self._table("models")[variant.triton_model] = row
            ending = variant.triton_model.removeprefix(name)
            self._table("aliases")[f"{name}{PREDECESSOR[ending]}"] = variant.triton_model
        if all(variant.triton_model != name for variant in served):
            self._table("aliases")[name] = served[0].triton_model  # it has no plain variant, so its name means the other one

    @property
    def beside(self) -> list[str]:
        """The versions, as NAME@VERSION, that are served beside those that new jobs get."""
        return list(self._document.get("beside", {}))

    def add_beside(self, source_name: str, detector: Detector, served: Mapping[str, Served], old: Mapping[str, Model]) -> None:
        """Rows for a new version, by NAME@VERSION; what is no property of the export is as in the `old` rows, by NAME@VERSION
        as well."""
        self._table("labels")[source_name] = detector.labels
        for key, variant in served.items():
            row = _row(source_name, detector, variant)
            row.update({name: getattr(old[key], name) for name in _KEPT})
            self._table("beside")[key] = row

    def switch(self, keys: Iterable[str], old: Mapping[str, Model]) -> None:
        """Have new jobs get these versions; those of `old`, by the same keys, are beside from now on."""
        for key in keys:
            name, _, version = key.rpartition("@")
            row = self._table("beside").pop(key)
            before = self._document.get("models", {}).get(name)
            before = dict(before.unwrap()) if before is not None else _written(old[key])
            before.pop("version", None)
            labels: list[str] = before.get("labels", [])
            if len(labels) != 1 or labels[0][1:] not in self._table("labels"):  # the built-in file's, or written out
                self._table("labels")[f"{name}@{old[key].version}"] = old[key].labels
                before["labels"] = [f"@{name}@{old[key].version}"]
            self._table("beside")[f"{name}@{old[key].version}"] = before
            row["version"] = int(version)
            self._table("models")[name] = row

    def drop_beside(self, keys: Iterable[str]) -> None:
        """Take versions out, with the labels that only they used."""
        beside: dict[str, Any] = self._document.get("beside", {})
        for key in [key for key in keys if key in beside]:
            named = [str(label)[1:] for label in beside.pop(key).get("labels", [])[:1]]
            others = [*self._document.get("models", {}).values(), *beside.values()]
            used = {str(label)[1:] for row in others for label in row.get("labels", [])[:1]}
            for label in set(named) - used:
                self._document.get("labels", {}).pop(label, None)
        if "beside" in self._document and not beside:
            del self._document["beside"]

    def remove(self, names: Iterable[str]) -> None:
        """Take rows out, all versions, with the aliases and labels that only they used."""
        gone = set(names)
        self.drop_beside([key for key in self.beside if key.rpartition("@")[0] in gone])
        rows: dict[str, Any] = self._document.get("models", {})
        labels = gone | {str(label)[1:] for name in gone & set(rows) for label in rows[name].get("labels", [])[:1]}
        for table in ("models", "aliases", "labels"):
            content: dict[str, Any] = self._document.get(table, {})
            out = labels if table == "labels" else gone
            for key in [key for key, value in content.items() if key in out or (table == "aliases" and value in gone)]:
                del content[key]
        for name in gone:
            self.keep(name, loaded=True)

    def keep(self, name: str, *, loaded: bool) -> None:
        """Whether Triton is to hold a model."""
        unloaded: list[str] = list(self._document.get("unloaded", []))
        if loaded == (name not in unloaded):
            return
        wanted = [other for other in unloaded if other != name] + ([] if loaded else [name])
        # A plain value must stand before the first table, or it would be read as a part of that.
        self._document.pop("unloaded", None)
        rest = {
            key: self._document.pop(key) for key in list(self._document) if key in ("models", "beside", "aliases", "labels")
        }
        if wanted:
            self._document.add("unloaded", tomlkit.item(wanted))
        for key, value in rest.items():
            self._document.add(key, value)

    def save(self) -> None:
        """Check what was made as a service would, then put it in place.

        Raises:
            RegistryError: it cannot be written, or would not be taken.
        """
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}.new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(tomlkit.dumps(self._document), "utf-8")
            models.load(beside)
            beside.replace(self.path)
        except OSError as error:
            raise RegistryError(f"{self.path}: cannot be written ({error.strerror})") from None
        finally:
            beside.unlink(missing_ok=True)

    def _table(self, name: str) -> Any:
        if name not in self._document:
            self._document.add(name, tomlkit.table())
        return self._document[name]


def _row(source_name: str, detector: Detector, variant: Served) -> Any:
    row = tomlkit.table()
    row.update(
        {
            "track": variant.track,
            "triton_model": variant.triton_model,
            "input_width": detector.input_width,
            "input_height": detector.input_height,
            "head": variant.head,
            "labels": [f"@{source_name}"],
            "max_batch": variant.max_batch,
            "source": f"sources/{source_name}.onnx",
        }
    )
    return row


def _written(model: Model) -> dict[str, Any]:
    """A row of the built-in file, as it would be written."""
    names = ("track", "triton_model", "input_width", "input_height", "head", "labels", "max_batch", *_KEPT)
    return {name: getattr(model, name) for name in names}

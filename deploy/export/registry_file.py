"""A registry file that is changed by commands: rows come and go, what else a person wrote there stays.

    folder/models.toml          the rows; `builtin = true` keeps the built-in models beside them
    folder/repository/NAME/     what Triton serves of each (`deploy.export.repository`)
    folder/sources/NAME.onnx    the export that it was made from

A change is written beside the file and moved over it, so a service that follows the file never sees half of one.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from deploy.export.detector import Detector
from deploy.export.repository import Served
from shared import models
from shared.models import RegistryError

_HEAD = """Models of this mesh besides the built-in ones, written by `visionmesh models`. Edit it: services follow it.
docs/models.md explains every field."""

PREDECESSOR = {"": "_trt", "_end2end": "_trt_end2end"}
"""How the predecessor spelled a variant: the end of its name here, and there."""


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
        return [name for name, row in rows.items() if row.get("source") == f"sources/{source_name}.onnx"]

    def add(self, name: str, detector: Detector, served: Sequence[Served], *, family: str, confidence: float | None) -> None:
        """Rows for the variants of a detector, its labels once, and the predecessor's spellings of them."""
        self._table("labels")[name] = detector.labels
        for variant in served:
            row = tomlkit.table()
            row.update(
                {
                    "family": family,
                    "track": variant.track,
                    "triton_model": variant.triton_model,
                    "input_width": detector.input_width,
                    "input_height": detector.input_height,
                    "head": variant.head,
                    "labels": [f"@{name}"],
                    "max_batch": variant.max_batch,
                    "source": f"sources/{name}.onnx",
                }
            )
            if confidence is not None:
                row["confidence"] = confidence
            self._table("models")[variant.triton_model] = row
            ending = variant.triton_model.removeprefix(name)
            self._table("aliases")[f"{name}{PREDECESSOR[ending]}"] = variant.triton_model
        if all(variant.triton_model != name for variant in served):
            self._table("aliases")[name] = served[0].triton_model  # it has no plain variant, so its name means the other one

    def remove(self, names: Iterable[str]) -> None:
        """Take rows out, with the aliases and labels that only they used."""
        gone = set(names)
        for table in ("models", "aliases", "labels"):
            content: dict[str, Any] = self._document.get(table, {})
            for key in [key for key, value in content.items() if key in gone or (table == "aliases" and value in gone)]:
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
        rest = {key: self._document.pop(key) for key in list(self._document) if key in ("models", "aliases", "labels")}
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

"""The registry as its file says it now (`shared.live_file`), and for a while the rows that have gone from it."""

import time

from shared import models
from shared.errors import UnknownModel
from shared.live_file import LiveFile
from shared.models import Model, Registry, RegistryError

REMEMBERED_S = 3600.0
"""How long a row that has gone can still be asked for: longer than a job may wait for its turn."""


class LiveRegistry:
    """The registry that `MESH_MODELS` means, and always one that holds the default model."""

    def __init__(self, setting: str, default_model: str = "") -> None:
        """Read it.

        Raises:
            RegistryError: the file cannot be used.
            UnknownModel: it does not hold the default model.
        """
        self._setting = setting
        self._default_model = default_model
        self._rows: dict[str, Model] = {}
        self._gone: dict[str, tuple[Model, float]] = {}
        self._file = LiveFile("registry", lambda: models.file_of(setting), self._read, (RegistryError, UnknownModel))

    @property
    def problem(self) -> str:
        """What is wrong with the file, in one line; empty while it is good."""
        return self._file.problem

    @property
    def now(self) -> Registry:
        """The models at this moment."""
        return self._file.now

    def refresh(self) -> None:
        """Look at the file now. Never raises."""
        self._file.refresh()

    def get(self, name: str) -> Model:
        """A model by its name or alias, even one that was added a moment ago.

        Raises:
            UnknownModel: there is none.
        """
        try:
            return self.now.get(name)
        except UnknownModel:
            return self._file.refresh().get(name)

    def of_job(self, name: str, served_as: str) -> Model:
        """The version of a model that a job was accepted with, even if it has gone since; else the model's present one.

        Raises:
            UnknownModel: there is none, nor was there of late.
        """
        if served_as not in self.now.served:
            self.refresh()
        model = self.now.served.get(served_as)
        if model is None and served_as in self._gone:
            model = self._gone[served_as][0]
        return model or self.now.get(name)

    def _read(self) -> Registry:
        registry = models.load(self._setting)
        if self._default_model:
            registry.get(self._default_model)
        now_s = time.monotonic()
        self._gone = {name: gone for name, gone in self._gone.items() if now_s - gone[1] < REMEMBERED_S}
        self._gone |= {name: (model, now_s) for name, model in self._rows.items() if name not in registry.served}
        self._rows = registry.served
        return registry

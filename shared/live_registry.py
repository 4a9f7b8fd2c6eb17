"""The registry as its file says it now: looked at while it is used, read again when the file has changed.

A new file that cannot be used changes nothing: the models stay those of the last good one, the log and `/health` say what is
wrong with it.
"""

import time
from pathlib import Path

import structlog

from shared import models
from shared.errors import UnknownModel
from shared.models import Model, Registry, RegistryError

LOOK_S = 0.25
"""How often the file is looked at, at most: a look is a `stat`, but a request makes several."""

log = structlog.get_logger()

_Stamp = tuple[Path, int, int, int]


class LiveRegistry:
    """The registry that `MESH_MODELS` means, and always one that holds the default model."""

    def __init__(self, setting: str, default_model: str = "") -> None:
        """Read it.

        Raises:
            RegistryError: the file cannot be used.
            UnknownModel: it does not hold the default model.
        """
        self.problem = ""
        """What is wrong with the file, in one line; empty while it is good."""
        self._setting = setting
        self._default_model = default_model
        self._looked_s = time.monotonic()
        self._stamp = self._look()
        self._registry = self._read()

    @property
    def now(self) -> Registry:
        """The models at this moment."""
        if time.monotonic() - self._looked_s >= LOOK_S:
            self.refresh()
        return self._registry

    def get(self, name: str) -> Model:
        """A model by its name or alias, even one that was added a moment ago.

        Raises:
            UnknownModel: there is none.
        """
        try:
            return self.now.get(name)
        except UnknownModel:
            self.refresh()
            return self._registry.get(name)

    def refresh(self) -> None:
        """Look at the file now. Never raises."""
        self._looked_s = time.monotonic()
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._registry = self._read()
        except (RegistryError, UnknownModel) as error:
            self.problem = str(error)
            log.warning("registry.not_taken", problem=self.problem, models=sorted(self._registry.models))
        else:
            self.problem = ""
            log.info("registry.read", file=str(stamp[0]), models=sorted(self._registry.models))

    def _read(self) -> Registry:
        registry = models.load(self._setting)
        if self._default_model:
            registry.get(self._default_model)
        return registry

    def _look(self) -> _Stamp:
        file = models.file_of(self._setting)
        try:
            stat = file.stat()
        except OSError:
            return file, 0, 0, 0
        return file, stat.st_mtime_ns, stat.st_size, stat.st_ino

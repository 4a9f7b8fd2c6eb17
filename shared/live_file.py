"""A file as it says now: looked at while it is used, read again when it has changed.

A new content that cannot be used changes nothing: what was read last and was good stays; the log says what is wrong, and so
does `problem`, for `/health`. Nothing runs beside: whoever asks has it looked at, so an idle process reads nothing.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

LOOK_S = 0.25
"""How often a file is looked at, at most: a look is a `stat`, but a request makes several."""

FOLLOWED_S = LOOK_S + 0.1
"""A change that is as old as this is seen by whatever process is asked from now on."""

log = structlog.get_logger()

T = TypeVar("T")

_Stamp = tuple[Path, int, int, int]


class LiveFile(Generic[T]):
    """What `read` makes of the file that `find` names. `refused` are the errors with which `read` refuses a content."""

    def __init__(
        self, what: str, find: Callable[[], Path], read: Callable[[], T], refused: tuple[type[Exception], ...]
    ) -> None:
        """Read it; what `read` raises now is raised."""
        self._problem = ""
        self._what = what
        self._find = find
        self._read = read
        self._refused = refused
        self._looked_s = time.monotonic()
        self._stamp = self._look()
        self._content = read()

    @property
    def now(self) -> T:
        """The content at this moment."""
        if time.monotonic() - self._looked_s >= LOOK_S:
            self.refresh()
        return self._content

    @property
    def problem(self) -> str:
        """What is wrong with the file at this moment, in one line; empty while it is good."""
        _ = self.now
        return self._problem

    def refresh(self) -> T:
        """Look at the file now, however short ago that was. Never raises."""
        self._looked_s = time.monotonic()
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._content = self._read()
            except self._refused as error:
                self._problem = str(error)
                log.warning("file.not_taken", what=self._what, file=str(stamp[0]), problem=self._problem)
            else:
                self._problem = ""
                log.info("file.read", what=self._what, file=str(stamp[0]))
        return self._content

    def _look(self) -> _Stamp:
        file = self._find()
        try:
            stat = file.stat()
        except OSError:
            return file, 0, 0, 0
        return file, stat.st_mtime_ns, stat.st_size, stat.st_ino

"""Many pictures at once: what counts as a failure of one of them and what of all, and how far it has come."""

from collections.abc import Callable, Iterable, Sized

import msgspec

from shared import errors
from visionmesh.errors import BadAnswer, MeshError, Unreachable
from visionmesh.results import Result

CONCURRENCY = 8
AHEAD = 2
"""How many times the concurrency may be begun and not yet returned: one slow picture holds up the order, not the work."""

OF_ALL: tuple[type[MeshError], ...] = (
    Unreachable,
    BadAnswer,
    errors.Unauthorized,
    errors.Forbidden,
    errors.NotFound,
    errors.UnknownModel,
    errors.InvalidParameter,
)
"""What the next picture would meet as well; everything else concerns one picture and stands in its result."""


class Progress(msgspec.Struct, frozen=True):
    """How far it has come: `done` pictures, `failed` of them; `total` is `None` if nobody can know."""

    done: int
    failed: int
    total: int | None


OnProgress = Callable[[Progress], object]


class Tally:
    """Counts results and tells of them."""

    def __init__(self, pictures: Iterable[object], tell: OnProgress | None) -> None:
        self._total = len(pictures) if isinstance(pictures, Sized) else None
        self._tell = tell
        self._done = self._failed = 0

    def count(self, result: Result) -> Result:
        """Count a result, and return it."""
        self._done += 1
        self._failed += not result.ok
        if self._tell:
            self._tell(Progress(self._done, self._failed, self._total))
        return result

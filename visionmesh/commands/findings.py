"""What a check of `visionmesh doctor` saw, and what to do about it."""

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """What a check saw. `mend` says what to do, and is empty when all is well; with `is_note` the mesh works without it."""

    what: str
    mend: str = ""
    is_note: bool = False

    @property
    def is_wrong(self) -> bool:
        """Whether something must be mended."""
        return bool(self.mend) and not self.is_note

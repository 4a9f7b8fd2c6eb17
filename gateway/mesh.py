"""What every route needs of the mesh, made once per process and found at `request.state.mesh`."""

import time

import msgspec

from shared.models import Registry
from shared.settings import Settings
from shared.store import Store


class Mesh(msgspec.Struct, frozen=True):
    """The settings, the models and the store of this gateway process."""

    settings: Settings
    registry: Registry
    store: Store
    name: str
    started_s: float = msgspec.field(default_factory=time.monotonic)
    """When this process started, by its monotonic clock."""

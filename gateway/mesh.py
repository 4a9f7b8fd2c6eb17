"""What every route needs of the mesh, made once per process and found at `request.state.mesh`."""

import asyncio
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
    closing: asyncio.Event
    """Set when this process was told to stop: what never ends by itself ends then."""
    started_s: float = msgspec.field(default_factory=time.monotonic)
    """When this process started, by its monotonic clock."""

"""What every route needs of the mesh, made once per process and found at `request.state.mesh`."""

import asyncio
import time

import msgspec

from shared.access import NOBODY, Access, Tenant
from shared.live_file import LiveFile
from shared.live_registry import LiveRegistry
from shared.models import Registry
from shared.settings import Settings
from shared.store import Store


class Mesh(msgspec.Struct, frozen=True):
    """The settings, the models and the store of this gateway process."""

    settings: Settings
    live_registry: LiveRegistry
    store: Store
    name: str
    closing: asyncio.Event
    """Set when this process was told to stop: what never ends by itself ends then."""
    keys: LiveFile[Access] | None = None
    """The API keys, where they are configured."""
    tenant: Tenant = NOBODY
    """Whose request this is; `NOBODY` where no keys are configured."""
    started_s: float = msgspec.field(default_factory=time.monotonic)
    """When this process started, by its monotonic clock."""

    @property
    def registry(self) -> Registry:
        """The models at this moment."""
        return self.live_registry.now

    def of(self, tenant: Tenant) -> "Mesh":
        """The same mesh for a request of this tenant."""
        return msgspec.structs.replace(self, tenant=tenant)

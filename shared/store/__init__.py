"""The mesh's memory, and the only code that knows Redis. Services hold a `Store` and see neither keys nor commands."""

from shared.store.store import Store, connect

__all__ = ["Store", "connect"]

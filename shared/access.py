"""Who may do what: API keys, their scopes, and the tenants whose work they keep apart.

`MESH_API_KEYS` names a TOML file; without it everybody may do everything and there is one nameless tenant.

    [tenants.acme]                       # optional; the defaults are no rate and the whole of the byte budget
    rate_per_s = 20
    burst = 40
    byte_share = 0.25

    [keys]
    "sha256:9f86d0..." = { tenant = "acme", scopes = ["submit", "read"] }

Only hashes are written down. A key has 256 random bits, so a plain SHA-256 is enough: there is nothing to guess.
"""

import hashlib
import secrets
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from shared.live_file import LiveFile

Scope = Literal["submit", "read", "admin"]
"""`submit` sends and cancels, `read` reads one's own jobs, `admin` also sees the mesh itself. `admin` includes the others."""

PREFIX = "vm_"
_HASH = "sha256:"

TenantName = Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9_-]{0,63}$")]


class AccessError(Exception):
    """The file of keys cannot be used. The message is one line that names the file and the entry."""


class Tenant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose jobs these are. `rate_per_s` 0 sets no rate; `burst` 0 means one second's worth; `byte_share` is of the budget."""

    name: str = ""
    rate_per_s: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    burst: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    byte_share: Annotated[float, Meta(gt=0, le=1)] = 1.0


NOBODY = Tenant()
"""The one tenant of a mesh without keys."""


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a key stands for."""

    tenant: TenantName
    scopes: Annotated[list[Scope], Meta(min_length=1)]

    def allows(self, scope: Scope) -> bool:
        """Whether the key is good for this."""
        return scope in self.scopes or "admin" in self.scopes


class _File(msgspec.Struct, forbid_unknown_fields=True):
    keys: dict[Annotated[str, Meta(pattern="^sha256:[0-9a-f]{64}$")], Key]
    tenants: dict[TenantName, Tenant] = {}


class Access(msgspec.Struct, frozen=True):
    """The keys by their hash, and the tenants by name."""

    keys: dict[str, Key]
    tenants: dict[str, Tenant]

    def find(self, key: str) -> Key | None:
        """What this key stands for. Looked up by its hash, so time tells nothing about the keys that exist."""
        return self.keys.get(digest(key))

    def tenant(self, name: str) -> Tenant:
        """A tenant with its limits."""
        return self.tenants.get(name) or Tenant(name=name)


def new_key() -> str:
    """A fresh API key."""
    return PREFIX + secrets.token_urlsafe(32)


def digest(key: str) -> str:
    """The form in which a key is written down: `sha256:` and 64 hexadecimal digits."""
    return _HASH + hashlib.sha256(key.encode()).hexdigest()


def load(path: str) -> Access | None:
    """Read a file of keys; `None` if no path is given.

    Raises:
        AccessError: it is missing, no TOML, or an entry is wrong.
    """
    return _read(path) if path else None


def follow(path: str) -> LiveFile[Access] | None:
    """A file of keys as it says now; `None` if no path is given. Keys come and go within a moment, without a restart.

    Raises:
        AccessError: see `load`.
    """
    return LiveFile("keys", lambda: Path(path), lambda: _read(path), (AccessError,)) if path else None


def _read(path: str) -> Access:
    try:
        parsed = msgspec.convert(tomllib.loads(Path(path).read_text("utf-8")), _File)
    except OSError as error:
        raise AccessError(f"{path}: cannot be read ({error.strerror}); set MESH_API_KEYS to a file of keys") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise AccessError(f"{path}: {error}") from None
    if not parsed.keys:
        raise AccessError(f"{path}: has no key; `visionmesh keys new` makes one")
    return Access(parsed.keys, {name: msgspec.structs.replace(tenant, name=name) for name, tenant in parsed.tenants.items()})

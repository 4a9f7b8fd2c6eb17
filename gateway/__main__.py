"""`python -m gateway`: the gateway on Granian.

Granian keeps `MESH_GATEWAY_WORKERS` processes, replaces each when it is old or large, and on SIGTERM lets requests end for
at most `MESH_SHUTDOWN_S`. HTTP/1.1 only: uploads over HTTP/2 were measured 25 times slower; a proxy can end HTTP/2.
"""

import multiprocessing
import os
import sys

from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings

from gateway import metrics, ports
from shared import access
from shared.access import AccessError
from shared.errors import UnknownModel
from shared.live_registry import LiveRegistry
from shared.models import RegistryError
from shared.settings import Settings, SettingsError, read

HEADER_TIMEOUT_S = 10.0
"""Headers are a few hundred bytes; they get no more time than this, and no more than a body."""

MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(8 << 20), "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
"""glibc keeps so much of what uploads used, instead of giving each piece's pages back and having the kernel clear new ones for
the next: a third of a millisecond of CPU for a photo of 2 MB. Read by new processes only; no other C library looks at it."""


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    Granian(
        "gateway.app:create",
        factory=True,
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=int(min(HEADER_TIMEOUT_S, settings.body_timeout_s) * 1000)),
        loop=Loops.uvloop,
        websockets=False,
        workers=settings.gateway_workers,
        respawn_failed_workers=True,
        workers_lifetime=settings.gateway_worker_lifetime_s,
        workers_max_rss=settings.gateway_worker_max_rss_mb,
        workers_kill_timeout=settings.shutdown_s,
        log_level="warning",  # type: ignore[arg-type] # Granian takes the name as well as its enumeration
    ).serve()


def main() -> int:
    """Check the configuration, then serve; returns the exit code."""
    try:
        settings = read()
        registry = LiveRegistry(settings.models, settings.default_model)
        access.load(settings.api_keys)
        ports.check(settings.host, settings.port)
    except (SettingsError, RegistryError, UnknownModel, AccessError, ports.PortTaken) as error:
        print(f"gateway: {error}", file=sys.stderr)  # noqa: T201 - the one line for a person who started us by hand
        return 2
    # Not forked: a process with threads (the one that tells metrics) must not be, and metrics are set up at their import.
    multiprocessing.set_start_method("spawn")
    os.environ.update(MALLOC | os.environ)
    with metrics.told(settings, registry):
        serve(settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How a worker process starts and stops: settings checked, logs on, SIGTERM and SIGINT turned into an event."""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable

import uvloop

from shared import log, tracing
from shared.errors import UnknownModel
from shared.models import RegistryError
from shared.settings import Settings, SettingsError, read


def main(name: str, run: Callable[[Settings, asyncio.Event], Awaitable[None]]) -> int:
    """Run a service until it is told to stop; returns the exit code: 2 with one line if its configuration is wrong."""
    try:
        settings = read()
        log.configure(settings, name)
        tracing.configure(name)
        uvloop.run(_run(settings, run))
    except (SettingsError, RegistryError, UnknownModel) as error:
        print(f"{name}: {error}", file=sys.stderr)  # noqa: T201 - the one line for a person who started us by hand
        return 2
    finally:
        tracing.stop()
    return 0


async def _run(settings: Settings, run: Callable[[Settings, asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await run(settings, stop)

"""How a worker process starts and stops: settings checked, logs on; SIGTERM, SIGINT and its own age or size turned into an
event."""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable

import uvloop

from shared import log, tracing
from shared.errors import UnknownModel
from shared.models import RegistryError
from shared.recycling import stop_when_due
from shared.settings import Settings, SettingsError, read


def main(name: str, run: Callable[[Settings, asyncio.Event], Awaitable[None]]) -> int:
    """Run a service until it is told to stop; returns the exit code: 2 with one line if its configuration is wrong."""
    try:
        settings = read()
        log.configure(settings, name)
        tracing.configure(name)
        uvloop.run(serve(settings, run))
    except (SettingsError, RegistryError, UnknownModel) as error:
        print(f"{name}: {error}", file=sys.stderr)  # noqa: T201 - the one line for a person who started us by hand
        return 2
    finally:
        tracing.stop()
    return 0


async def serve(settings: Settings, run: Callable[[Settings, asyncio.Event], Awaitable[None]]) -> None:
    """Run a service until a signal or its age or size stops it."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    recycling = asyncio.create_task(stop_when_due(settings, stop))
    try:
        await run(settings, stop)
    finally:
        recycling.cancel()
        await asyncio.gather(recycling, return_exceptions=True)

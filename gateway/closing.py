"""Whether this process was told to stop, for answers that would else go on for as long as their reader likes.

Granian ends a worker's lifespan only after its last request, so a stream of events has to learn of the stop by itself. The
server's own handler stays in place: an event loop acts on the number that Python writes to the loop's wake-up descriptor,
whatever function is registered for the signal (https://docs.python.org/3/library/signal.html#signal.set_wakeup_fd).
"""

import asyncio
import contextlib
import signal
from collections.abc import Generator


@contextlib.contextmanager
def watch() -> Generator[asyncio.Event]:
    """An event that is set when SIGTERM or SIGINT comes."""
    closing = asyncio.Event()
    loop = asyncio.get_running_loop()
    earlier: dict[signal.Signals, object] = {}

    def on_signal(*_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            loop.call_soon_threadsafe(closing.set)

    with contextlib.suppress(ValueError):  # not the main thread: no signal comes here
        for number in (signal.SIGTERM, signal.SIGINT):
            earlier[number] = signal.signal(number, on_signal)
    try:
        yield closing
    finally:
        closing.set()
        for number, handler in earlier.items():
            signal.signal(number, handler)  # type: ignore[arg-type] # what `signal.signal` returned

"""Redis' clock, read from here: the only clock whose times are stored, so that a worker's wrong clock has no effect.

The offset between this process' monotonic clock and Redis' TIME is measured at the start and refreshed with every
heartbeat; the sample with the shortest round trip of a refresh is used.
"""

import time

from shared.store.connection import Connection

SAMPLES = 3


class Clock:
    """Redis' time in epoch milliseconds, to within about half a round trip."""

    def __init__(self) -> None:
        # Until the first refresh the host's own clock is the best guess there is.
        self._offset_ms = time.time() * 1000 - time.monotonic() * 1000

    def now_ms(self) -> float:
        """Redis' time now."""
        return time.monotonic() * 1000 + self._offset_ms

    async def refresh(self, connection: Connection) -> None:
        """Measure the offset again.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        best_ms = float("inf")
        for _ in range(SAMPLES):
            before = time.monotonic() * 1000
            seconds, microseconds = await connection.run_one("TIME")
            after = time.monotonic() * 1000
            if after - before < best_ms:
                best_ms = after - before
                self._offset_ms = int(seconds) * 1000 + int(microseconds) / 1000 - (before + after) / 2

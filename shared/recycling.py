"""Workers that end by themselves when they are old or large, against whatever libraries leak.

A worker that is due is stopped as by SIGTERM: it takes no more jobs, finishes those it has, and exits with 0; whoever keeps it
running - the local supervisor, compose, Kubernetes - starts it again. (The gateway's processes are replaced by Granian, and
decoders by their pool.)
"""

import asyncio
import random
import time

import psutil
import structlog

from shared.settings import Settings

EARLIEST = 0.8
"""A worker lives for this share of its lifetime up to all of it: those that were started together do not end together."""

CHECK_S = 4.0
"""How often a worker looks at its memory, on average; spread by a half for the same reason."""

log = structlog.get_logger()


def lifetime_s(settings: Settings) -> float:
    """How long this process may live: by chance within the last fifth of what is set, or for ever."""
    if not settings.worker_lifetime_s:
        return float("inf")
    return settings.worker_lifetime_s * random.uniform(EARLIEST, 1.0)  # noqa: S311 - jitter needs no secrecy


async def stop_when_due(settings: Settings, stop: asyncio.Event) -> None:
    """Set `stop` once this process is old or large; canceled when it ends otherwise."""
    process, started_s = psutil.Process(), time.monotonic()
    ends_s, most_bytes = started_s + lifetime_s(settings), settings.worker_max_rss_mb << 20
    while not stop.is_set():
        # At first as well: a worker that is too large from the start shall get something done.
        await asyncio.sleep(min(ends_s - time.monotonic(), CHECK_S * random.uniform(0.5, 1.5)))  # noqa: S311 - as above
        now_s, rss_bytes = time.monotonic(), process.memory_info().rss
        is_old, is_large = now_s >= ends_s, 0 < most_bytes < rss_bytes
        if is_old or is_large:
            why = "age" if is_old else "memory"
            log.info("worker.recycled", why=why, age_s=round(now_s - started_s, 1), rss_bytes=rss_bytes)
            stop.set()
            return

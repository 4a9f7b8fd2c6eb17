"""The heartbeat of a process: who it is, how it does, every few seconds."""

import asyncio
import os
import socket
import time
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import psutil
import structlog

from shared.errors import MeshError
from shared.messages import MESSAGE_VERSION, Heartbeat, timestamp
from shared.store import Store

log = structlog.get_logger()


async def beat_forever(
    store: Store,
    interval_s: float,
    kind: Literal["gateway", "preprocess", "inference", "tasks"],
    name: str,
    status: Callable[[], dict[str, Any]],
) -> None:
    """Beat until canceled, then say goodbye. `status` gives the fields of `Heartbeat` that only the service knows."""
    process = psutil.Process()
    process.cpu_percent()
    beat = Heartbeat(
        kind=kind,
        name=name,
        host=socket.gethostname(),
        pid=os.getpid(),
        started_at=timestamp(time.time() * 1000),
        rss_bytes=0,
        cpu_percent=0.0,
        jobs_done=0,
        message_version=MESSAGE_VERSION,
    )
    try:
        while True:
            try:
                said = status()
                if identity := store.upload_files.identity:
                    said["details"] = said.get("details", {}) | {"uploads": identity}
                now = msgspec.structs.replace(
                    beat, rss_bytes=process.memory_info().rss, cpu_percent=process.cpu_percent(), **said
                )
                await store.heartbeats.beat(now)
            except MeshError as error:
                log.warning("heartbeat.missed", error=error.detail)
            await asyncio.sleep(interval_s)
    finally:
        try:
            async with asyncio.timeout(1):
                await store.heartbeats.leave(beat)
        except (MeshError, TimeoutError):
            log.debug("heartbeat.no_goodbye")

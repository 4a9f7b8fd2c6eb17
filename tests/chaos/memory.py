"""What a mesh holds when its work is done: the memory of its parts, and slots of shared memory."""

import asyncio
import contextlib
import time

import httpx
import psutil

from deploy.local.supervisor import LocalMesh
from shared.store.arena import FOLDER, MappedArena

PARTS = ("gateway", "preprocess", "inference")
SETTLE_S = 15.0


def memory_of(mesh: LocalMesh) -> dict[str, float]:
    """Resident megabytes of each part, its children included."""
    found: dict[str, float] = {}
    for part in PARTS:
        with contextlib.suppress(psutil.NoSuchProcess):
            found[part] = round(sum(process.memory_info().rss for process in family(mesh, part)) / 1e6, 1)
    return found


def family(mesh: LocalMesh, part: str) -> list[psutil.Process]:
    """A part's process with its children, as they are now."""
    pid = mesh.processes[part].pid
    with contextlib.suppress(psutil.NoSuchProcess):
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)] if pid else []
    return []


def counts_of(mesh: LocalMesh) -> dict[str, int]:
    """How many processes each part has."""
    return {part: len(family(mesh, part)) for part in PARTS}


async def complete(mesh: LocalMesh, counts: dict[str, int]) -> bool:
    """Wait until each part has as many processes as it had, for else their memory does not compare; whether it came to that."""
    deadline_s = time.monotonic() + SETTLE_S
    while counts_of(mesh) != counts:
        if time.monotonic() > deadline_s:
            return False
        await asyncio.sleep(0.1)
    return True


async def busy_slots(mesh: LocalMesh) -> dict[str, int]:
    """Leased slots of live preprocess workers' arenas; waits a while for none, for a sweep may have to see to it."""
    deadline_s = time.monotonic() + SETTLE_S
    async with httpx.AsyncClient(base_url=mesh.url, timeout=30) as http:
        while True:
            workers = (await http.get("/health")).json()["workers"]
            names = [each["details"]["arena"] for each in workers if each["kind"] == "preprocess" and each["details"]["arena"]]
            busy = {name: MappedArena.open(name).busy for name in names if (FOLDER / name).exists()}
            if (busy and not any(busy.values())) or time.monotonic() > deadline_s:
                return {name: count for name, count in busy.items() if count}
            await asyncio.sleep(0.1)


def grown(rss_mb: dict[str, tuple[float, float]], most: float) -> dict[str, tuple[float, float]]:
    """The parts whose memory after is more than `most` times that before."""
    return {part: (before, after) for part, (before, after) in rss_mb.items() if after > before * most}

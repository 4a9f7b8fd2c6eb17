"""`visionmesh watch`: a live view of queues, workers, batch fill and latencies.

Queues and workers are those of `/health`. Latencies are of what the mesh publishes on its Redis, so they need MESH_REDIS_URL.
"""

import asyncio
import contextlib
import sys
import time
from collections import deque
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from visionmesh.async_client import AsyncClient
from visionmesh.commands.submit import DEFAULT_URL, URL
from visionmesh.commands.subscribe import REDIS_URL

WINDOW_S = 60.0
_MIB = 1024 * 1024


class View(msgspec.Struct):
    """One look at the mesh. `jobs_per_s` is by worker, `latency_ms` by model over the last minute, of its published results."""

    health: dict[str, Any]
    jobs_per_s: dict[str, float]
    batch_fill: dict[str, float]
    latency_ms: dict[str, dict[str, float]]


class Watching:
    """What is remembered from look to look."""

    def __init__(self) -> None:
        self.ended: deque[tuple[float, str, float]] = deque()
        """(monotonic seconds, model, milliseconds) of each job that ended."""
        self._before: dict[str, tuple[float, int]] = {}

    def look(self, health: dict[str, Any], max_batch: int) -> View:
        """The mesh as it is now."""
        now_s = time.monotonic()
        rates: dict[str, float] = {}
        fills: dict[str, float] = {}
        for worker in health["workers"]:
            name, done = worker["name"], worker["jobs_done"]
            earlier_s, earlier = self._before.get(name, (now_s, done))
            if now_s > earlier_s:
                rates[name] = round(max(done - earlier, 0) / (now_s - earlier_s), 2)
            self._before[name] = now_s, done
            mean = worker["details"].get("mean_batch_size")
            if mean:
                fills[name] = round(mean / max_batch, 3)
        while self.ended and self.ended[0][0] < now_s - WINDOW_S:
            self.ended.popleft()
        by_model: dict[str, list[float]] = {}
        for _, model, took_ms in self.ended:
            by_model.setdefault(model, []).append(took_ms)
        return View(health, rates, fills, {model: _percentiles(sorted(took)) for model, took in by_model.items()})


def watch(
    url: URL = DEFAULT_URL,
    redis_url: REDIS_URL = "",
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 1.0,
    count: Annotated[int, typer.Option(min=0, help="End after so many looks; 0: never.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print each look as a line of JSON.")] = False,
) -> None:
    """Watch queues, workers, batch fill and latencies until Ctrl-C. Exit code 1 if the mesh was not well at the last look."""
    with contextlib.suppress(KeyboardInterrupt):
        if not asyncio.run(_watch(url, redis_url, every, count, as_json)):
            raise typer.Exit(1)


async def _watch(url: str, redis_url: str, every_s: float, count: int, as_json: bool) -> bool:
    watching = Watching()
    console = Console(highlight=False)
    async with AsyncClient(url) as client, contextlib.AsyncExitStack() as stack:
        max_batch = max(int(model["max_batch"]) for model in await client.models())
        if redis_url:
            finished = await stack.enter_async_context(client.subscribe(redis_url=redis_url))
            stack.push_async_callback(_end, asyncio.create_task(_remember(watching, finished)))
        live = None
        if not as_json and console.is_terminal:
            live = stack.enter_context(Live(console=console, auto_refresh=False))
        looks = 0
        while True:
            view = watching.look(await client.health(), max_batch)
            if as_json:
                sys.stdout.write(msgspec.json.encode(view).decode() + "\n")
                sys.stdout.flush()
            elif live:
                live.update(_draw(url, view, bool(redis_url)), refresh=True)
            else:
                console.print(_draw(url, view, bool(redis_url)))
            looks += 1
            if looks == count:
                return view.health["status"] == "ok"
            await asyncio.sleep(every_s)


async def _remember(watching: Watching, finished: Any) -> None:
    async for job in finished:
        if "total" in job.timings_ms:
            watching.ended.append((time.monotonic(), job.model, job.timings_ms["total"]))


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _percentiles(ordered: list[float]) -> dict[str, float]:
    at = {f"p{share}": ordered[min(len(ordered) * share // 100, len(ordered) - 1)] for share in (50, 95, 99)}
    return at | {"jobs": len(ordered)}


def _draw(url: str, view: View, hears: bool) -> RenderableType:
    health = view.health
    colour = "green" if health["status"] == "ok" else "red"
    head = Text.from_markup(f"{url}: [bold {colour}]{health['status']}[/], up {health['uptime_s']:.0f} s")
    workers = Table("worker", "process", "memory", "CPU", "jobs", "jobs/s", "batch fill", "GPU", box=None, header_style="dim")
    for worker in health["workers"]:
        fill = view.batch_fill.get(worker["name"])
        rate = view.jobs_per_s.get(worker["name"], 0.0)
        gpus = ", ".join(f"{gpu['utilization_percent']} %" for gpu in worker["gpu"] or ())
        workers.add_row(
            worker["kind"], str(worker["pid"]), f"{worker['rss_bytes'] / _MIB:.0f} MiB", f"{worker['cpu_percent']:.0f} %",
            str(worker["jobs_done"]), f"{rate:.1f}", "" if fill is None else f"{fill:.0%}", gpus,
        )  # fmt: skip
    queues = Table("queue", "waiting", "in progress", "oldest", box=None, header_style="dim")
    for name, depth in health["queues"].items():
        queues.add_row(name, str(depth["waiting"]), str(depth["in_progress"]), f"{depth['oldest_age_ms'] / 1000:.1f} s")
    latencies = Table("model", "last minute", "p50", "p95", "p99", box=None, header_style="dim")
    for model, at in view.latency_ms.items():
        latencies.add_row(model, f"{at['jobs']:.0f} jobs", *(f"{at[name]:.0f} ms" for name in ("p50", "p95", "p99")))
    unheard = Text("latencies: name the mesh's Redis by MESH_REDIS_URL or --redis-url", style="dim")
    return Group(head, "", workers, "", queues, "", latencies if hears else unheard)

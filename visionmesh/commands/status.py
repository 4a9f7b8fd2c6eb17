"""`visionmesh status`: how a running mesh is."""

import sys
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from visionmesh.client import Client
from visionmesh.commands.submit import DEFAULT_URL, URL

_MIB = 1024 * 1024


def status(
    url: URL = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print the health document as it is.")] = False,
) -> None:
    """Show the health of a running mesh: parts, workers, queues, models. Exit code 1 if it is not ready."""
    with Client(url) as client:
        health = client.health()
    if as_json:
        sys.stdout.write(msgspec.json.encode(health).decode() + "\n")
    else:
        _show(Console(), url, health)
    if health["status"] != "ok":
        raise typer.Exit(1)


def _show(console: Console, url: str, health: dict[str, Any]) -> None:
    colour = "green" if health["status"] == "ok" else "red"
    console.print(f"{url}: [bold {colour}]{health['status']}[/], up {health['uptime_s']:.0f} s", highlight=False)
    for name, holds in health["checks"].items():
        if not holds:
            console.print(f"  [red]missing[/] {name}", highlight=False)
    workers = Table("worker", "host", "process", "memory", "CPU", "jobs", "last error", box=None, header_style="dim")
    for beat in health["workers"]:
        workers.add_row(
            beat["kind"], beat["host"], str(beat["pid"]), f"{beat['rss_bytes'] / _MIB:.0f} MiB", f"{beat['cpu_percent']:.0f} %",
            str(beat["jobs_done"]), beat["last_error"] or "",
        )  # fmt: skip
    console.print(workers)
    queues = Table("queue", "waiting", "in progress", "oldest", box=None, header_style="dim")
    for name, depth in health["queues"].items():
        queues.add_row(name, str(depth["waiting"]), str(depth["in_progress"]), f"{depth['oldest_age_ms'] / 1000:.1f} s")
    console.print(queues)
    ready = ", ".join(
        f"{name} {'ready' if model['ready'] else '[red]not ready[/]'}" for name, model in health["models"].items()
    )
    console.print(f"models: {ready}", highlight=False)
    budget = health["byte_budget"]
    if budget:
        used, limit = budget["reserved_bytes"] / _MIB, budget["limit_bytes"] / _MIB
        console.print(f"byte budget: {used:.1f} of {limit:.0f} MiB reserved", highlight=False)

"""`visionmesh up`: the whole mesh on this machine until Ctrl-C."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.local.supervisor import Options, running
from shared import models, settings
from visionmesh.address import DEFAULT_URL
from visionmesh.display import StartDisplay


def up(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: 9600, or a free one if that is taken.")] = 0,
    preprocess_workers: Annotated[int, typer.Option(min=1, max=64)] = 1,
    inference_workers: Annotated[int, typer.Option(min=1, max=64)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the addresses as a line of JSON when it is ready.")] = False,
) -> None:
    """Start Valkey, Triton, the gateway and the workers here, and keep them running until Ctrl-C."""
    asyncio.run(_up(options(host, port, preprocess_workers, inference_workers), as_json))


def options(host: str = "127.0.0.1", port: int = 0, preprocess_workers: int = 1, inference_workers: int = 1) -> Options:
    """Options of a local mesh, with servers that the environment names; the environment is checked before anything starts.

    Raises:
        SettingsError, RegistryError, UnknownModel: a setting is wrong.
    """
    checked = settings.read()
    models.load(checked.models).get(checked.default_model)
    return Options(
        host=host,
        port=port or int(os.environ.get("MESH_PORT", "0")),
        preprocess_workers=preprocess_workers,
        inference_workers=inference_workers,
        redis_url=os.environ.get("MESH_REDIS_URL", ""),
        triton_url=os.environ.get("MESH_TRITON_URL", ""),
    )


def _command() -> str:
    """This command, as it can be typed into another terminal in the same folder."""
    command = os.path.relpath(Path(sys.executable).with_name("visionmesh"))
    return command if not command.startswith("..") else str(Path(command).resolve())


def _where(url: str) -> str:
    return "" if url == DEFAULT_URL else f" --url {url}"


async def _up(chosen: Options, as_json: bool) -> None:
    console = Console(stderr=True)
    stop = asyncio.Event()
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    ready = False

    def end() -> None:
        if ready:
            stop.set()
        elif task:  # still starting
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    display = StartDisplay(console)
    try:
        display.__enter__()
        async with running(chosen, display) as mesh:
            display.__exit__(None, None, None)
            ready = True
            console.print(f"[bold green]visionmesh is ready at {mesh.url}[/]", highlight=False)
            if as_json:
                addresses = {
                    "url": mesh.url,
                    "redis_url": mesh.redis_url,
                    "triton_url": mesh.triton_url,
                    "logs": str(mesh.folder),
                }
                sys.stdout.write(json.dumps(addresses) + "\n")
                sys.stdout.flush()
            console.print(f"  the page    {mesh.url} in a browser", highlight=False)
            console.print(f"  a folder    {_command()} detect photos/{_where(mesh.url)}", highlight=False)
            console.print(f"  a photo     curl -F image=@photo.jpg {mesh.url}/predict/small", highlight=False)
            console.print(f"  subscribe   {mesh.redis_url} channel mesh:results", highlight=False)
            console.print(f"  health      {mesh.url}/health     logs {mesh.folder}", highlight=False)
            console.print(f"  metrics     http://127.0.0.1:{mesh.metrics_ports['gateway']}/metrics", highlight=False)
            console.print("  Ctrl-C stops it", highlight=False)
            await asyncio.wait({asyncio.create_task(stop.wait()), mesh.failed}, return_when=asyncio.FIRST_COMPLETED)
            console.print("stopping", highlight=False)
    except asyncio.CancelledError:
        console.print("stopped before it was ready", highlight=False)
    finally:
        display.__exit__(None, None, None)

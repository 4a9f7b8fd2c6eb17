"""`visionmesh subscribe`: every job that finishes, whoever sent it, from the mesh's Redis."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from shared.messages import job_to_json
from visionmesh.client import Client
from visionmesh.commands.submit import show

REDIS_URL = Annotated[str, typer.Option(envvar="MESH_REDIS_URL", help="The mesh's Redis; `visionmesh up` prints it.")]


def subscribe(
    redis_url: REDIS_URL = "",
    model: Annotated[str, typer.Option(help="Only of this model.")] = "",
    group: Annotated[str, typer.Option(help="Share the durable stream with others of this name.")] = "",
    after: Annotated[str, typer.Option(help="Begin after this entry of the durable stream; 0: all that is kept.")] = "",
    count: Annotated[int, typer.Option(min=0, help="End after so many; 0: never.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print each job as a line of JSON.")] = False,
) -> None:
    """Print every job that finishes. Without --group and --after what is missed is gone."""
    console, told = Console(), 0
    try:
        with Client() as client, client.subscribe(redis_url=redis_url, model=model, group=group, after=after) as finished:
            Console(stderr=True).print("listening", style="dim")
            for job in finished:
                if as_json:
                    sys.stdout.write(job_to_json(job).decode() + "\n")
                    sys.stdout.flush()
                else:
                    show(console, Path(job.id), job)
                told += 1
                if told == count:
                    return
    except KeyboardInterrupt:
        return

"""`visionmesh jobs`: what an operator does with jobs, straight on the store that MESH_REDIS_URL names."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from shared import models
from shared.errors import MeshError
from shared.messages import Job
from shared.settings import read
from shared.store import Store, connect

T = TypeVar("T")

app = typer.Typer(help="Jobs that failed by the mesh's fault (an operator's tool: it asks the store, not the gateway).")
dead_app = typer.Typer(help="Dead letters: kept with their pictures, to be replayed.", invoke_without_command=True)
app.add_typer(dead_app, name="dead")


def _with_store(work: Callable[[Store], Awaitable[T]]) -> T:
    async def run() -> T:
        async with connect(read()) as store:
            await store.ping()
            return await work(store)

    return asyncio.run(run())


@app.callback()
def _jobs() -> None:
    """Jobs that failed by the mesh's fault."""


@dead_app.callback()
def dead(context: typer.Context) -> None:
    """List the dead letters, the latest first."""
    if context.invoked_subcommand:
        return
    letters = _with_store(lambda store: store.dead_letters.list())
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if not letters:
        console.print("no dead letters")
        return
    for job in letters:
        why = f"{job.error.code}: {job.error.detail}" if job.error else ""
        console.print(f"{job.id}  {job.finished_at}  {job.model}  {why}")


@dead_app.command()
def replay(
    job_ids: Annotated[list[str] | None, typer.Argument(help="Dead letters by ID.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
) -> None:
    """Send the pictures of dead letters through the mesh again, each as a new job. Exit code 1 if one could not be."""
    if bool(job_ids) == everything:
        raise typer.BadParameter("name dead letters, or give --all")
    registry = models.load(read().models)
    console, refused = Console(highlight=False, soft_wrap=True), 0

    async def work(store: Store) -> None:
        nonlocal refused
        letters: list[str] = job_ids or [job.id for job in await store.dead_letters.list()]
        for job_id in letters:
            try:
                job: Job = await store.dead_letters.replay(job_id, registry)
            except MeshError as error:
                refused += 1
                console.print(f"{job_id} [red]not replayed[/]: {error.detail}")
            else:
                console.print(f"{job_id} is now {job.id}")

    _with_store(work)
    if refused:
        raise typer.Exit(1)

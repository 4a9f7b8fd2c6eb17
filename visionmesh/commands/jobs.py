"""`visionmesh jobs`: one job by its ID, over HTTP (`visionmesh.commands.job`); and what an operator does with jobs that failed
by the mesh's fault, straight on the store that MESH_REDIS_URL names."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from shared import models
from shared.errors import MeshError
from shared.messages import Job, job_to_json
from shared.settings import read
from shared.store import Store, connect
from visionmesh.commands import job

T = TypeVar("T")

app = typer.Typer(help="One job by its ID, and the dead letters.", no_args_is_help=True)
dead_app = typer.Typer(
    help="Jobs that failed by the mesh's fault, kept with their pictures, to be replayed (for operators: it asks the store).",
    invoke_without_command=True,
)
app.add_typer(dead_app, name="dead")
app.command("get")(job.get)
app.command("watch")(job.watch)
app.command("cancel")(job.cancel)


def _with_store(work: Callable[[Store], Awaitable[T]]) -> T:
    async def run() -> T:
        async with connect(read()) as store:
            await store.ping()
            return await work(store)

    return asyncio.run(run())


@dead_app.callback()
def dead(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print each as a line of JSON.")] = False,
) -> None:
    """List the dead letters, the latest first."""
    if context.invoked_subcommand:
        return
    letters = _with_store(lambda store: store.dead_letters.list())
    if as_json:
        sys.stdout.write("".join(job_to_json(letter).decode() + "\n" for letter in letters))
        return
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if not letters:
        console.print("no dead letters")
        return
    for letter in letters:
        why = f"{letter.error.code}: {letter.error.detail}" if letter.error else ""
        console.print(f"{letter.id}  {letter.finished_at}  {letter.model}  {why}")


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
        letters: list[str] = job_ids or [letter.id for letter in await store.dead_letters.list()]
        for job_id in letters:
            try:
                replayed: Job = await store.dead_letters.replay(job_id, registry)
            except MeshError as error:
                refused += 1
                console.print(f"{job_id} [red]not replayed[/]: {error.detail}")
            else:
                console.print(f"{job_id} is now {replayed.id}")

    _with_store(work)
    if refused:
        raise typer.Exit(1)

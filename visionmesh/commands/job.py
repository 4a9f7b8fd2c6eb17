"""`visionmesh jobs get|watch|cancel`: one job of a running mesh, by its ID. Exit code 1 if it ended without a result."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from shared.messages import TERMINAL, job_to_json
from visionmesh.client import Client
from visionmesh.commands.submit import DEFAULT_URL, URL, show
from visionmesh.results import Result

JOB_ID = Annotated[str, typer.Argument(help="The job's ID.")]
AS_JSON = Annotated[bool, typer.Option("--json", help="Print the job as a line of JSON.")]


def get(
    job_id: JOB_ID,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for its end; 0: show it as it is.")] = 0.0,
    url: URL = DEFAULT_URL,
    as_json: AS_JSON = False,
) -> None:
    """Show a job, at once or when it has ended."""
    with Client(url) as client:
        job = client.job(job_id)
        _tell(job.wait(wait) if wait else job.latest, as_json)
    _exit_by(job.latest)


def watch(job_id: JOB_ID, url: URL = DEFAULT_URL, as_json: AS_JSON = False) -> None:
    """Show each step of a job as it happens, until it has ended."""
    with Client(url) as client:
        job = client.job(job_id)
        for step in job.events():
            _tell(step, as_json)
    _exit_by(job.latest)


def cancel(job_id: JOB_ID, url: URL = DEFAULT_URL, as_json: AS_JSON = False) -> None:
    """Cancel a job; exit code 1 if it had ended before, which stays so."""
    with Client(url) as client:
        canceled = client.job(job_id).cancel()
    _tell(canceled, as_json)
    if canceled.status != "canceled":
        raise typer.Exit(1)


def _tell(job: Result, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(job_to_json(job).decode() + "\n")
        sys.stdout.flush()
    elif job.status in TERMINAL:
        show(Console(), Path(job.id), job)
    else:
        Console(highlight=False).print(f"{job.id}, {job.stage or job.status}")


def _exit_by(job: Result) -> None:
    if job.status in TERMINAL and not job.ok:
        raise typer.Exit(1)

"""Which cores a run's processes get: all of them to all, or the clients' side and the work's side apart.

    shared   every process, and the clients, on every core
    apart    preprocess and inference workers and Triton on the first half of the cores;
             gateway, tasks, Valkey and the clients on the other half

In production clients have machines of their own. `apart` comes as near to that as one machine can: what the clients cost is
not taken from those who decode, and what refusing costs cannot hide in it.
"""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Literal, get_args

import psutil

from deploy.local.supervisor import LocalMesh, Options, running

Cores = Literal["shared", "apart"]
CORES: tuple[Cores, ...] = get_args(Cores)

FRONT = ("gateway", "tasks", "valkey")
"""What is on the clients' side of the cores."""


class TooFewCores(Exception):
    """There are not two cores to keep apart. The message is one line."""


@asynccontextmanager
async def running_on(cores: Cores, options: Options) -> AsyncGenerator[LocalMesh]:
    """A mesh on its cores, with this process, which sends, on those of the clients.

    Raises:
        TooFewCores, StartError: there is no such mesh.
    """
    mine = os.sched_getaffinity(0)
    if cores == "shared":
        async with running(options) as mesh:
            yield mesh
        return
    if len(mine) < 2:
        raise TooFewCores("cores can be kept apart only where there are two")
    ordered = sorted(mine)
    back, front = set(ordered[: len(ordered) // 2]), set(ordered[len(ordered) // 2 :])
    # Started on the work's cores: decoders and Triton count at their start what they may use.
    os.sched_setaffinity(0, back)
    try:
        async with running(options) as mesh:
            for name in FRONT:
                if pid := mesh.processes[name].pid:
                    _move(psutil.Process(pid), front)
            _move(psutil.Process(), front, family=False)
            yield mesh
    finally:
        _move(psutil.Process(), mine, family=False)


def _move(process: psutil.Process, cores: set[int], *, family: bool = True) -> None:
    """Put a process with all its threads, and its children, on these cores. What they start later follows them."""
    for member in [process, *(process.children(recursive=True) if family else ())]:
        for thread in member.threads():
            os.sched_setaffinity(thread.id, cores)

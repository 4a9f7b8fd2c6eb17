"""Workers that are old or large end by themselves, with 0; those that were started together not together."""

import asyncio
import os
from pathlib import Path

from deploy.local.process import Process, python_module
from shared import recycling
from shared.settings import Settings
from tests.conftest import Background

WORKERS = ["preprocess_worker", "inference_worker", "gateway.tasks"]


def test_lifetimes_are_spread_below_what_is_set() -> None:
    lifetimes = [recycling.lifetime_s(Settings(worker_lifetime_s=1000)) for _ in range(100)]
    assert 1000 * recycling.EARLIEST <= min(lifetimes) < max(lifetimes) <= 1000
    assert max(lifetimes) - min(lifetimes) > 100
    assert recycling.lifetime_s(Settings(worker_lifetime_s=0)) == float("inf")


DUE = {"age": {"MESH_WORKER_LIFETIME_S": "1"}, "memory": {"MESH_WORKER_MAX_RSS_MB": "8"}}


def test_workers_that_are_due_end_and_say_why(background: Background, redis_url: str, tmp_path: Path) -> None:
    nowhere = {
        "MESH_TRITON_URL": "127.0.0.1:1",
        "MESH_DECODERS": "1",
        "MESH_WORKER_LIFETIME_S": "0",
        "MESH_WORKER_MAX_RSS_MB": "0",
    }
    environ = {**os.environ, **nowhere, "MESH_REDIS_URL": redis_url}
    workers = {
        (name, why): Process(name, python_module(name), environ | setting, tmp_path / f"{name}-{why}.log")
        for name in WORKERS
        for why, setting in DUE.items()
    }

    async def ends() -> set[int]:
        async with asyncio.timeout(60):
            return set(await asyncio.gather(*(worker.wait() for worker in workers.values())))

    for worker in workers.values():
        background.run(worker.start())
    try:
        assert background.run(ends()) == {0}
    finally:
        for worker in workers.values():
            background.run(worker.stop(5))
    for (_, why), worker in workers.items():
        (line,) = [line for line in worker.log.read_text().splitlines() if "worker.recycled" in line]
        assert f'"why": "{why}"' in line

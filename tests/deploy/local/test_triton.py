"""The embedded Triton leaves no process and no shared memory behind, however it ended."""

import os
import signal
from pathlib import Path

import psutil

from deploy.local.triton import SHARED_MEMORY
from tests.conftest import Background, running_triton


def test_a_killed_triton_leaves_nothing(background: Background, tmp_path: Path, model_repository: Path) -> None:
    with running_triton(background, tmp_path, model_repository, ["small"]) as server:
        regions = set(SHARED_MEMORY.glob(f"{server.shm_prefix}*"))
        assert regions, "its Python backend does not name its memory as it was told"
        stubs = psutil.Process(server.pid).children(recursive=True)
        assert stubs, "its Python models run in processes of their own"
        os.kill(server.pid or 0, signal.SIGKILL)
        background.run(server.wait())
        background.run(server.start())
        assert not psutil.wait_procs(stubs, timeout=10)[1]
        assert not [region for region in regions if region.exists()]
    assert not list(SHARED_MEMORY.glob(f"{server.shm_prefix}*"))

"""CPU time by part: seconds that a process and all it started have used."""

import contextlib
from collections.abc import Mapping

import psutil


class CpuTimes:
    """CPU seconds by part since this was made."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._before = {part: used_s(pid) for part, pid in self._pids.items()}

    def since(self) -> dict[str, float]:
        """Seconds by part."""
        return {part: max(used_s(pid) - self._before[part], 0.0) for part, pid in self._pids.items()}


def used_s(pid: int) -> float:
    """CPU seconds, user and system, of a process, its children's children, and those of them that have ended."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                # What a child used goes over to its parent's `children_` figures when it is waited for: Valkey's rewrites.
                total += times.user + times.system + times.children_user + times.children_system
    return total

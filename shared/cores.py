"""How many CPU cores this process may use: its affinity, and the quota of its container."""

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def available(cgroups: Path = _CGROUPS) -> int:
    """Cores available to this process, at least 1; a part of a core counts as one."""
    # Not everywhere where clients and benchmarks run is Linux.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota_v2(cgroups) or _quota_v1(cgroups)
    return max(min(cores, math.ceil(quota)), 1) if quota else cores


def _quota_v2(cgroups: Path) -> float | None:
    # "max 100000" or "150000 100000": microseconds of CPU time in each period.
    words = _read(cgroups / "cpu.max").split()
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0].isdecimal() else None


def _quota_v1(cgroups: Path) -> float | None:
    quota, period = (_read(cgroups / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None  # -1: no quota


def _read(file: Path) -> str:
    try:
        return file.read_text("ascii").strip()
    except OSError:
        return ""

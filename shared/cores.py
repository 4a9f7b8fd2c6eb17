"""How many cores this process may use: its affinity, and the CPU quota of its cgroup (containers)."""

import os
from pathlib import Path

_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def available() -> int:
    """Whole cores, at least one."""
    cores = float(len(os.sched_getaffinity(0)))
    try:
        if _CGROUP_V2.exists():
            quota, period = _CGROUP_V2.read_text().split()
        else:
            quota, period = (path.read_text().strip() for path in _CGROUP_V1)
        if quota not in ("max", "-1"):
            cores = min(cores, int(quota) / int(period))
    except (OSError, ValueError):
        pass  # no cgroup that limits us
    return max(int(cores), 1)

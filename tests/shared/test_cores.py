import os
from pathlib import Path

import pytest

from shared import cores
from visionmesh.bench import results
from visionmesh.commands import doctor


def test_quota_of_cgroup_v2(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert cores.available(tmp_path) == 1


def test_quota_of_cgroup_v1(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("90000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores.available(tmp_path) == 1


def test_without_quota_it_is_the_affinity(tmp_path: Path) -> None:
    assert cores.available(tmp_path) == len(os.sched_getaffinity(0))
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cores.available(tmp_path) == len(os.sched_getaffinity(0))


def test_all_who_ask_count_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available", lambda: 3)
    assert results.machine().cores == 3
    assert next(doctor._machine()).what == "3 cores"

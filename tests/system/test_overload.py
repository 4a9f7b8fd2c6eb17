"""A short form of `make overload`: three times the capacity for seconds; what was accepted ends, the rest is told to wait."""

import asyncio

import pytest

from tests.overload.run import overload


@pytest.mark.slow
def test_overload_is_refused_and_nothing_accepted_is_lost() -> None:
    # Goodput and percentiles need a machine of one's own: `make overload` looks at those.
    environ = {"MESH_BYTE_BUDGET": "16000000", "MESH_RESULT_TTL_S": "5", "MESH_DEAD_LETTER_TTL_S": "5"}
    report = asyncio.run(overload(seconds=8, times=3, peak_s=1, environ=environ))
    assert report.refused.count > 0
    assert report.accepted.count > 0
    assert report.errors == {}
    assert report.unanswered == 0
    assert min(report.retry_after_s) >= 1
    assert report.recovery_s < 30
    assert (report.lost, report.twice) == (0, 0)
    assert set(report.statuses) == {"succeeded"}
    assert report.keys_left == []

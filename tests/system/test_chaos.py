"""The short form of `make chaos`: a few hundred jobs, the worst faults once, nothing lost, nothing twice, nothing left."""

import asyncio

from tests.chaos.memory import grown
from tests.chaos.run import RECOVERY_S, chaos

MEMORY_MOST = 1.8

FAULTS = [
    "kill -9 preprocess worker",
    "kill -9 inference worker",
    "kill -9 gateway",
    "kill -9 valkey",
    "kill -9 triton",
    "stop inference worker past its lease",
    "refuse connections to redis for 2 s",
]


def test_no_accepted_job_is_lost_and_none_ends_twice() -> None:
    report = asyncio.run(chaos(jobs=300, faults=FAULTS, pause_s=0.5, seed=3, once=True, result_ttl_s=5))
    assert report.accepted >= 300
    assert report.errors_logged == []
    assert report.faults == dict.fromkeys(FAULTS, 1)
    assert report.lost == 0
    assert report.twice == 0
    assert report.ended == report.accepted
    # A client that hears of its job only after the result's short time to live may have made it anew.
    assert set(report.statuses) == {"succeeded"}
    assert report.keys_left == []
    assert report.files_left == []
    assert report.slots_leaked == {}
    assert report.complete, "a part has more or fewer processes than it began with"
    assert grown(report.rss_mb, MEMORY_MOST) == {}
    assert max(report.slowest_recovery_s.values()) < RECOVERY_S

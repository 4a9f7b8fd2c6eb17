"""A batch waits for more only where its pictures waited for a decoder, and no longer than that or than it takes to fill."""

import pytest

from inference_worker.batching import Pace, worth_waiting_s
from shared.messages import JobOptions, Ticket


def ticket(waited_ms: float) -> Ticket:
    return Ticket(
        id="a", partition=0, entry_id="1-0", fence=1, attempts=1, model="small", served_as="small", track="B",
        options=JobOptions(), created_ms=0, queued_ms=0, claimed_ms=0, deadline_ms=0, upload_bytes=1,
        timings_ms={"preprocess_wait": waited_ms},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("waited_ms", "linger_ms", "full_ms", "pause_ms"),
    [([0.0], 60.0, 900.0, 0.0), ([1.5], 60.0, 900.0, 0.0), ([10.0], 60.0, 900.0, 10.0), ([50.0], 60.0, 900.0, 15.0),
     ([200.0], 60.0, 900.0, 40.0), ([500.0], 60.0, 900.0, 60.0), ([500.0], 60.0, 25.0, 25.0), ([500.0], 60.0, 1.0, 0.0),
     ([500.0, 1.0], 60.0, 900.0, 0.0), ([500.0], 0.0, 900.0, 0.0)],
)  # fmt: skip
def test_pause_follows_the_wait_before(waited_ms: list[float], linger_ms: float, full_ms: float, pause_ms: float) -> None:
    pause_s = worth_waiting_s([ticket(each) for each in waited_ms], linger_ms, full_ms / 1000)
    assert pause_s == pytest.approx(pause_ms / 1000)


def test_pace_is_learnt_from_what_is_taken() -> None:
    pace = Pace()
    before_s = pace.time_s(10)
    for _ in range(30):
        pace.took(8)
    assert pace.time_s(10) < before_s / 100

"""A batch waits for more only where its pictures had to wait for a decoder, and never longer than that."""

import pytest

from inference_worker.batching import worth_waiting_s
from shared.messages import JobOptions, Ticket


def ticket(waited_ms: float) -> Ticket:
    return Ticket(
        id="a", partition=0, entry_id="1-0", fence=1, attempts=1, model="small", served_as="small", track="B",
        options=JobOptions(), created_ms=0, queued_ms=0, claimed_ms=0, deadline_ms=0, upload_bytes=1,
        timings_ms={"preprocess_wait": waited_ms},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("waited_ms", "linger_ms", "pause_ms"),
    [([0.0], 15.0, 0.0), ([1.5], 15.0, 0.0), ([10.0], 15.0, 10.0), ([500.0], 15.0, 15.0),
     ([500.0, 1.0], 15.0, 0.0), ([500.0], 0.0, 0.0)],
)  # fmt: skip
def test_pause_follows_the_wait_before(waited_ms: list[float], linger_ms: float, pause_ms: float) -> None:
    assert worth_waiting_s([ticket(each) for each in waited_ms], linger_ms) == pytest.approx(pause_ms / 1000)

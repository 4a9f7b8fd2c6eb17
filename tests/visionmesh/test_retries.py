"""What the client does when the mesh is full, away or broken, against a real server that misbehaves by script."""

import asyncio
import email.utils
import time
from http.server import BaseHTTPRequestHandler

import pytest

from shared.errors import (
    Internal,
    Overloaded,
    StillAccepting,
    StoreUnavailable,
    TooManyRequests,
    Unauthorized,
    UnsupportedMedia,
)
from tests.visionmesh.conftest import Scripted, hang_up, job_answer, problem
from visionmesh import AsyncClient, Client, Retries
from visionmesh.errors import BadAnswer, TimedOut, Unreachable

QUICK = Retries(first_pause_s=0.01, longest_pause_s=0.02)


def keys(server: Scripted) -> set[str]:
    return {headers["idempotency-key"] for _, _, headers, _ in server.requests}


@pytest.mark.parametrize(
    "bad",
    [
        problem(503, "overloaded"),
        problem(503, "store-unavailable"),
        problem(429, "too-many-requests"),
        problem(409, "still-accepting"),
        (503, {"content-type": "text/html"}, b"<h1>a proxy says no</h1>"),
        (502, {}, b""),
        hang_up,
    ],
)
def test_tries_again_with_the_same_key(scripted: Scripted, bad: object) -> None:
    scripted.script = [bad, bad, job_answer()]
    with Client(scripted.url, retries=QUICK) as client:
        assert client.detect(b"picture").id == "one"
    assert len(scripted.requests) == 3
    assert len(keys(scripted)) == 1
    assert {body for _, _, _, body in scripted.requests} == {b"picture"}


def test_another_call_has_another_key(scripted: Scripted) -> None:
    scripted.script = [job_answer()]
    with Client(scripted.url) as client:
        client.detect(b"picture")
        client.detect(b"picture")
        client.submit(b"picture", idempotency_key="mine")
    assert len(keys(scripted)) == 3
    assert "mine" in keys(scripted)


def test_does_not_come_back_before_it_is_asked_to(scripted: Scripted) -> None:
    scripted.script = [problem(503, "overloaded", retry_after="1"), job_answer()]
    with Client(scripted.url, retries=QUICK) as client:
        began = time.monotonic()
        client.detect(b"picture")
        assert 1.0 <= time.monotonic() - began < 2.0


def test_retry_after_may_be_a_date(scripted: Scripted) -> None:
    # Dates have whole seconds, so this one is between one and two away.
    later = email.utils.formatdate(int(time.time()) + 2, usegmt=True)
    scripted.script = [problem(429, "too-many-requests", retry_after=later), job_answer()]
    with Client(scripted.url, retries=QUICK) as client:
        began = time.monotonic()
        client.detect(b"picture")
        assert 0.5 <= time.monotonic() - began < 3.0


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (problem(503, "overloaded", "full"), Overloaded),
        (problem(503, "store-unavailable", "full"), StoreUnavailable),
        (problem(429, "too-many-requests", "full"), TooManyRequests),
        (problem(409, "still-accepting", "full"), StillAccepting),
    ],
)
def test_gives_up_with_what_it_was_told(scripted: Scripted, bad: object, error: type[Exception]) -> None:
    scripted.script = [bad]
    with Client(scripted.url, retries=Retries(at_most=2, first_pause_s=0.01)) as client, pytest.raises(error, match="full"):
        client.detect(b"picture")
    assert len(scripted.requests) == 3


def test_does_not_wait_longer_than_it_may(scripted: Scripted) -> None:
    scripted.script = [problem(503, "overloaded", retry_after="3600")]
    began = time.monotonic()
    with Client(scripted.url) as client, pytest.raises(Overloaded):
        client.detect(b"picture")
    with Client(scripted.url, timeout_s=0.5, retries=Retries(first_pause_s=0.1)) as client, pytest.raises(Overloaded):
        client.detect(b"picture")
    assert time.monotonic() - began < 2
    assert len(scripted.requests) == 2


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (problem(415, "unsupported-media"), UnsupportedMedia),
        (problem(401, "unauthorized"), Unauthorized),
        (problem(500, "internal"), Internal),
        (problem(418, "code-of-the-future"), BadAnswer),
        ((404, {"content-type": "text/html"}, b"<h1>not here</h1>"), BadAnswer),
        ((200, {"content-type": "text/html"}, b"<h1>welcome to nginx</h1>"), BadAnswer),
        ((200, {"content-type": "application/json"}, b'{"id": 7}'), BadAnswer),
        ((400, {"content-type": "application/problem+json"}, b"[1]"), BadAnswer),
    ],
)
def test_does_not_repeat_what_would_be_refused_again(scripted: Scripted, bad: object, error: type[Exception]) -> None:
    scripted.script = [bad]
    with Client(scripted.url, retries=QUICK) as client, pytest.raises(error):
        client.detect(b"picture")
    assert len(scripted.requests) == 1


def test_nobody_there() -> None:
    with Client("http://127.0.0.1:1", retries=QUICK) as client, pytest.raises(Unreachable, match="visionmesh up"):
        client.detect(b"picture")


@pytest.mark.parametrize("url", ["localhost:9600", "ftp://host", "http://", "http://a b"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(Exception, match="is not a URL") as raised:
        Client(url)
    assert raised.value.code == "invalid-parameter"  # type: ignore[attr-defined]


def test_waits_by_long_polls_until_the_end(scripted: Scripted) -> None:
    scripted.script = [
        job_answer("queued", 202),
        job_answer("processing"),
        problem(503, "overloaded"),
        hang_up,
        job_answer("succeeded"),
    ]
    with Client(scripted.url, retries=QUICK) as client:
        assert client.detect(b"picture").status == "succeeded"
    methods = [(method, path.split("?")[0]) for method, path, _, _ in scripted.requests]
    assert methods == [("POST", "/v1/jobs"), *[("GET", "/v1/jobs/one")] * 4]
    assert scripted.requests[0][2]["prefer"] == "wait=20.000"
    assert scripted.requests[1][1].endswith("?wait=20.000")


def test_a_job_that_does_not_end_in_time_is_named(scripted: Scripted) -> None:
    def slowly(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.1)
        status, headers, content = job_answer("processing")
        handler.send_response(status)
        for name, value in ({"content-length": str(len(content))} | headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    scripted.script = [job_answer("queued", 202), slowly]
    with Client(scripted.url, retries=QUICK) as client, pytest.raises(TimedOut, match="processing") as raised:
        client.detect(b"picture", timeout_s=0.3)
    assert raised.value.job_id == "one"


def test_a_key_goes_along(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted.script = [job_answer()]
    with Client(scripted.url, api_key="mine") as client:
        client.detect(b"picture")
    monkeypatch.setenv("VISIONMESH_API_KEY", "theirs")
    with Client(scripted.url) as client:
        client.detect(b"picture")
    assert [headers["authorization"] for _, _, headers, _ in scripted.requests] == ["Bearer mine", "Bearer theirs"]


def test_the_asynchronous_client_retries_as_well(scripted: Scripted) -> None:
    scripted.script = [problem(503, "overloaded"), hang_up, problem(429, "too-many-requests"), job_answer()]

    async def main() -> None:
        async with AsyncClient(scripted.url, retries=QUICK) as client:
            assert (await client.detect(b"picture")).id == "one"

    asyncio.run(main())
    assert len(scripted.requests) == 4
    assert len(keys(scripted)) == 1


def test_pauses_have_full_jitter_and_a_bound() -> None:
    retries = Retries(first_pause_s=1, longest_pause_s=4)
    for failures, bound_s in ((1, 1), (2, 2), (3, 4), (9, 4)):
        drawn = [retries.pause_s(failures) for _ in range(300)]
        assert 0 <= min(drawn) < bound_s * 0.1
        assert bound_s * 0.9 < max(drawn) <= bound_s
    assert all(7 <= retries.pause_s(1, 7) <= 8 for _ in range(50))

"""Server-sent events of a job: in pieces, broken off, resumed, refused, absent."""

import asyncio
import json
from http.server import BaseHTTPRequestHandler

import pytest

from shared.errors import UnknownJob
from tests.visionmesh.conftest import Scripted, job_answer, problem
from visionmesh import AsyncClient, Client, Retries
from visionmesh.errors import Unreachable
from visionmesh.following import Following

QUICK = Retries(at_most=3, first_pause_s=0.01, longest_pause_s=0.02)


def event(status: str, number: int) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (number, status.encode(), job_answer(status)[2])


def stream(*pieces: bytes):
    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.send_header("connection", "close")
        handler.end_headers()
        for piece in pieces:
            handler.wfile.write(piece)
            handler.wfile.flush()
        handler.close_connection = True

    return send


def statuses(server: Scripted) -> list[str]:
    with Client(server.url, retries=QUICK) as client:
        return [step.status for step in client.submit(b"picture").events()]


def test_reads_events_however_they_are_cut() -> None:
    whole = b": hello\r\n\r\nretry: 1000\n\n" + event("queued", 1).replace(b"\n", b"\r\n") + event("succeeded", 2)
    for size in (1, 7, len(whole)):
        following = Following("one", QUICK)
        pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
        assert [step.status for piece in pieces for step in following.hear(piece)] == ["queued", "succeeded"]
        assert following.ended


def test_data_may_have_several_lines_and_odd_characters() -> None:
    job = json.loads(job_answer("failed", error={"code": "internal", "detail": "odd \u2028 line"})[2])
    data = json.dumps(job, ensure_ascii=False, indent=1)
    text = "".join(f"data: {line}\n" for line in data.split("\n")) + "\n"
    (step,) = Following("one", QUICK).hear(text.encode())
    assert step.error.detail == "odd \u2028 line"


def test_an_event_of_another_kind_is_passed_over() -> None:
    assert list(Following("one", QUICK).hear(b"event: gossip\ndata: hello\n\n")) == []


def test_goes_on_where_the_stream_broke_off(scripted: Scripted) -> None:
    scripted.script = [
        job_answer("queued", 202),
        stream(event("queued", 1), event("processing", 2)[:30]),
        problem(503, "overloaded"),
        stream(event("processing", 2), event("succeeded", 3)),
    ]
    assert statuses(scripted) == ["queued", "processing", "succeeded"]
    assert [headers.get("last-event-id") for _, _, headers, _ in scripted.requests[1:]] == [None, "1", "1"]


def test_polls_a_mesh_without_events(scripted: Scripted) -> None:
    scripted.script = [
        job_answer("queued", 202),
        problem(404, "not-found"),
        job_answer("processing"),
        job_answer("processing"),
        job_answer("succeeded"),
    ]
    assert statuses(scripted) == ["processing", "succeeded"]


def test_a_job_that_ended_at_once_has_one_step(scripted: Scripted) -> None:
    scripted.script = [job_answer("queued", 202), problem(404, "not-found"), job_answer("succeeded")]
    assert statuses(scripted) == ["succeeded"]


def test_a_job_that_is_not_there_is_an_error(scripted: Scripted) -> None:
    scripted.script = [job_answer("queued", 202), problem(404, "unknown-job")]
    with pytest.raises(UnknownJob):
        statuses(scripted)


def test_gives_up_on_a_stream_that_never_says_anything(scripted: Scripted) -> None:
    scripted.script = [job_answer("queued", 202), stream()]
    with pytest.raises(Unreachable):
        statuses(scripted)
    assert len(scripted.requests) == 1 + 1 + QUICK.at_most


def test_the_asynchronous_client_follows_as_well(scripted: Scripted) -> None:
    scripted.script = [
        job_answer("queued", 202),
        stream(event("queued", 1)),
        stream(event("processing", 2), event("succeeded", 3)),
    ]

    async def main() -> list[str]:
        async with AsyncClient(scripted.url, retries=QUICK) as client:
            job = await client.submit(b"picture")
            return [step.status async for step in job.events()]

    assert asyncio.run(main()) == ["queued", "processing", "succeeded"]

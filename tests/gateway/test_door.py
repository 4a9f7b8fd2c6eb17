"""The door of a full mesh: pictures are refused before they are read; all else is answered."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis

from shared.store import keys
from shared.store.admission import START_OPEN
from tests.conftest import PHOTOS, Background, _until
from tests.gateway.conftest import gateway_process

PHOTO = (PHOTOS / "chelsea.png").read_bytes()
TYPE = {"content-type": "image/png"}
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Door:
    """A gateway, and the books of its mesh, in which other jobs can be put down as open."""

    def __init__(self, url: str, books: redis.Redis, background: Background) -> None:
        self.http = httpx.Client(base_url=url, timeout=30)
        self.address = (self.http.base_url.host, self.http.base_url.port or 80)
        self._books = books
        self._background = background

    def shut(self) -> None:
        """Fill the mesh, and wait until this gateway has seen it."""
        self._books.zadd(keys.live(0), {f"job-{number}": 1e15 for number in range(START_OPEN)})
        self._until_it_answers(503)

    def open(self) -> None:
        """Let all jobs end, and wait until this gateway has seen it."""
        self._books.delete(keys.live(0))
        self._until_it_answers(202)

    def _until_it_answers(self, status: int) -> None:
        async def does() -> bool:
            await asyncio.sleep(0.1)
            # Three in a row: the first refusal may be Redis' own, which shuts the door for a moment only.
            return all(self.post("/v1/jobs").status_code == status for _ in range(3))

        self._background.run(_until(does))

    def post(self, path: str, **more: str) -> httpx.Response:
        return self.http.post(path, content=PHOTO, headers=TYPE | more)

    def head_only(self, path: str, *fields: str) -> tuple[socket.socket, int, dict[str, str], bytes]:
        """Send a request's head that announces a body which never comes; the answer's status, headers and body."""
        connection = socket.create_connection(self.address, timeout=10)
        lines = [f"POST {path} HTTP/1.1", "Host: mesh", "Content-Type: image/png", "Content-Length: 30000000", *fields, "", ""]
        connection.sendall("\r\n".join(lines).encode())
        received = b""
        while b"\r\n\r\n" not in received or not received.endswith(b"}"):
            received += connection.recv(65536)
        head, _, body = received.partition(b"\r\n\r\n")
        status, *given = head.decode().split("\r\n")
        return connection, int(status.split()[1]), dict(line.lower().split(": ", 1) for line in given), body


@pytest.fixture(scope="module")
def gateway(background: Background, folder: Path, valkey) -> Iterator[Door]:
    with (
        contextlib.closing(redis.Redis.from_url(valkey.url)) as books,
        gateway_process(background, folder, valkey.url, {}) as url,
    ):
        door = Door(url, books, background)
        yield door
        door.http.close()


@pytest.fixture
def full(gateway: Door, redis_url: str) -> Iterator[Door]:
    gateway.shut()
    yield gateway
    gateway.open()


def test_who_asks_first_is_refused_without_sending(full: Door) -> None:
    fields = ("Expect: 100-continue", "X-Request-ID: mine", f"traceparent: 00-{TRACE}-b7ad6b7169203331-01")
    connection, status, headers, body = full.head_only("/v1/jobs", *fields)
    with connection:
        assert status == 503
        assert headers["content-type"] == "application/problem+json"
        assert 1 <= int(headers["retry-after"]) <= 60
        assert headers["x-request-id"] == "mine"
        assert headers["traceparent"].split("-")[1] == TRACE
        assert headers["x-content-type-options"] == "nosniff"
        assert {"x-process-time", "server-timing"} <= headers.keys()
        problem = json.loads(body)
        assert (problem["status"], problem["code"], problem["trace_id"]) == (503, "overloaded", TRACE)
        assert problem["type"] == "/problems/overloaded"
        # Where the next request would begin nobody knows, so there is none on this connection.
        assert headers["connection"] == "close"
        assert connection.recv(1) == b""


@pytest.mark.parametrize(
    "path", ["/v1/jobs", "/v1/batches", "/predict/small", "/predict_batch/small", "/pytorch/predict/small"]
)
def test_the_answer_does_not_wait_for_the_body(full: Door, path: str) -> None:
    connection, status, headers, _ = full.head_only(path)
    connection.close()
    assert status == 503
    assert "connection" not in headers


def test_who_sends_at_once_keeps_the_connection(full: Door) -> None:
    with socket.create_connection(full.address, timeout=10) as connection:
        for _ in range(3):
            head = f"POST /v1/jobs HTTP/1.1\r\nHost: mesh\r\nContent-Type: image/png\r\nContent-Length: {len(PHOTO)}\r\n\r\n"
            connection.sendall(head.encode() + PHOTO)
            received = b""
            while not received.endswith(b"}"):
                received += connection.recv(65536)
            assert received.startswith(b"HTTP/1.1 503 ")


def test_a_body_of_doubtful_length_is_not_read(full: Door) -> None:
    connection, status, headers, _ = full.head_only("/v1/jobs", "Transfer-Encoding: chunked")
    connection.close()
    assert status in (400, 503)
    assert headers["connection"] == "close"


def test_all_else_is_answered(full: Door) -> None:
    assert full.http.get("/v1/models").status_code == 200
    assert full.http.get("/livez").status_code == 200
    assert full.http.post("/v1/jobs/none/cancel").status_code == 404
    assert full.http.get("/v1/jobs").status_code == 405


def test_redis_is_not_asked(full: Door) -> None:
    """That the door refuses, and not the script: no picture goes to Redis."""
    before = full._books.info("commandstats").get("cmdstat_set", {}).get("calls", 0)
    assert {full.post("/v1/jobs").status_code for _ in range(20)} == {503}
    assert full._books.info("commandstats").get("cmdstat_set", {}).get("calls", 0) == before

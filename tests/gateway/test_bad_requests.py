"""Requests that are too large, too slow, malformed or cut off, byte by byte on a real Granian: rows 5 to 16 of the bad days."""

import contextlib
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
import redis

from deploy.local.valkey import Valkey
from tests.conftest import PHOTOS, Background
from tests.gateway.conftest import gateway_process

PHOTO = (PHOTOS / "chelsea.png").read_bytes()
MOST = 1024 * 1024
CHUNK = 64 * 1024
BODY_TIMEOUT_S = 1.0
BOUNDARY = "frontier"


@pytest.fixture(scope="module")
def url(background: Background, valkey: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    environ = {
        "MESH_MAX_UPLOAD_BYTES": str(MOST),
        "MESH_UPLOAD_CHUNK_BYTES": str(CHUNK),
        "MESH_BODY_TIMEOUT_S": str(BODY_TIMEOUT_S),
    }
    with gateway_process(background, tmp_path_factory.mktemp("gateway"), valkey.url, environ) as url:
        yield url


@pytest.fixture(autouse=True)
def store(valkey: Valkey, url: str) -> Iterator[redis.Redis]:
    """Redis, which has to be as empty after a refusal as before it."""
    with contextlib.closing(redis.Redis.from_url(valkey.url, decode_responses=True)) as client:
        for key in client.scan_iter("{mesh:*"):
            client.delete(key)
        yield client


def nothing_is_left(store: redis.Redis) -> bool:
    return not list(store.scan_iter("{mesh:*"))


def until(condition, within_s: float = 5.0) -> bool:
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        if condition():
            return True
        time.sleep(0.01)  # what another process does to Redis cannot be awaited
    return False


class Wire:
    """A connection on which a client says whatever it likes."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=20)

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.socket.sendall(piece)

    def answer(self) -> tuple[int, bytes]:
        """Status and everything that came, or 0 if the other end only closed."""
        received = b""
        with contextlib.suppress(ConnectionResetError, TimeoutError):
            while part := self.socket.recv(65536):
                received += part
                head, _, body = received.partition(b"\r\n\r\n")
                length = next((line[16:] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), None)
                if length is not None and len(body) >= int(length):
                    break
        return (int(received[9:12]) if received.startswith(b"HTTP/1.1 ") else 0), received

    def closed(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


@pytest.fixture
def wire(url: str) -> Iterator[Wire]:
    wire = Wire(url)
    with wire.socket:
        yield wire


def head(*fields: str, path: str = "/v1/jobs") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: mesh", "Content-Type: image/png", *fields, "", ""]).encode()


def post(url: str, content: object, content_type: str, **options: object) -> httpx.Response:
    return httpx.post(f"{url}/v1/jobs", content=content, headers={"content-type": content_type}, timeout=20, **options)


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


def part(name: str, data: bytes = b"x", file_name: str = "x.png", more: str = "") -> bytes:
    lines = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{file_name}"\r\n{more}\r\n'
    return lines.encode() + data + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"


# --- sizes ----------------------------------------------------------------------------------------------------------


def test_a_length_over_the_limit_is_refused_before_the_body(wire: Wire, store: redis.Redis) -> None:
    wire.send(head(f"Content-Length: {MOST + 1}", "Expect: 100-continue"))
    status, text = wire.answer()
    assert status == 413, text
    assert b"too-large" in text
    assert nothing_is_left(store)


def test_a_client_that_sends_on_still_sees_the_refusal(url: str) -> None:
    assert problem(post(url, b"x" * (MOST + 1), "image/png")) == (413, "too-large")


def test_a_chunked_body_over_the_limit_leaves_nothing(url: str, store: redis.Redis) -> None:
    def pieces() -> Iterator[bytes]:
        yield PHOTO[:1000]
        for _ in range(MOST // CHUNK + 2):
            yield bytes(CHUNK)

    assert problem(post(url, pieces(), "image/png")) == (413, "too-large")
    assert nothing_is_left(store)


@pytest.mark.parametrize("content_type", ["image/png", "application/octet-stream"])
def test_an_empty_body_is_400(url: str, content_type: str) -> None:
    assert problem(post(url, b"", content_type)) == (400, "empty-body")


def test_an_empty_part_is_400(url: str) -> None:
    assert problem(post(url, part("image", b"") + END, MULTIPART)) == (400, "empty-body")


# --- kinds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", ["text/plain", "application/json", "application/x-www-form-urlencoded", "video/mp4"])
def test_a_wrong_content_type_is_415(url: str, content_type: str) -> None:
    assert problem(post(url, PHOTO, content_type)) == (415, "unsupported-media")


@pytest.mark.parametrize(
    "body",
    [
        b"hello, this is no picture at all",
        b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>',
        b"%PDF-1.7 a document that some loaders would take",
        b"II*\x00" + bytes(60),  # a TIFF: a picture, but a format that is off
        b"\x00\x00\x00\x1cftypavif" + bytes(60),
        b"x",
    ],
)
def test_what_is_no_picture_we_take_is_415_by_its_bytes(url: str, store: redis.Redis, body: bytes) -> None:
    assert problem(post(url, body, "image/png")) == (415, "unsupported-media")
    assert nothing_is_left(store)


def test_a_png_said_to_be_a_jpeg_is_taken(url: str) -> None:
    assert post(url, PHOTO, "image/jpeg").status_code == 202


# --- multipart ------------------------------------------------------------------------------------------------------

MALFORMED = {
    "nine parts": b"".join(part(f"field{number}") for number in range(8)) + part("image", PHOTO) + END,
    "10,000 part headers": part("image", PHOTO, more="".join(f"X-{number}: y\r\n" for number in range(10_000))) + END,
    "a part header of a megabyte": part("image", PHOTO[:1000], more=f"X-Long: {'y' * 900_000}\r\n") + END,
    "no closing boundary": part("image", PHOTO[:CHUNK]),
    "a huge epilogue": part("image", PHOTO[:CHUNK]) + END + b"z" * (MOST - 2 * CHUNK),
    "no picture": part("text") + END,
    "two pictures": part("image", PHOTO[:1000]) + part("image", PHOTO[:1000]) + END,
    "no disposition": f"--{BOUNDARY}\r\n\r\nx\r\n".encode() + END,
    "another boundary": part("image", PHOTO[:1000]).replace(BOUNDARY.encode(), b"other") + b"--other--\r\n",
    "nothing but dashes": b"-" * 100_000,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_multipart_is_400_soon_and_leaves_nothing(url: str, store: redis.Redis, name: str) -> None:
    started_s = time.perf_counter()
    answer = post(url, MALFORMED[name], MULTIPART)
    took_s = time.perf_counter() - started_s
    assert problem(answer) == (400, "malformed-multipart")
    assert took_s < 5, "a parser that can be kept busy"
    assert until(lambda: nothing_is_left(store))


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; x=y"])
def test_multipart_without_a_boundary_is_400(url: str, content_type: str) -> None:
    assert problem(post(url, part("image", PHOTO) + END, content_type)) == (400, "malformed-multipart")


@pytest.mark.parametrize("file_name", ["../../../../etc/passwd", "/etc/passwd", "..\\\\x", "a\x00b", "x" * 3000, "%2e%2e%2f"])
def test_a_file_name_means_nothing(url: str, store: redis.Redis, file_name: str) -> None:
    answer = post(url, part("image", PHOTO, file_name) + END, MULTIPART)
    assert answer.status_code == 202
    job_id = answer.json()["id"]
    assert store.strlen(f"{{mesh:0}}:upload:{job_id}") == len(PHOTO)
    assert "passwd" not in str(store.hkeys(f"{{mesh:0}}:job:{job_id}"))


# --- the wire -------------------------------------------------------------------------------------------------------


def test_two_lengths_are_refused_and_the_connection_ends(wire: Wire, store: redis.Redis) -> None:
    smuggled = b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: mesh\r\n\r\n"
    wire.send(head(f"Content-Length: {len(smuggled)}", "Transfer-Encoding: chunked"), smuggled)
    status, text = wire.answer()
    assert status == 400, text
    assert text.count(b"HTTP/1.1 ") == 1, "the smuggled request was answered"
    assert wire.closed()
    assert nothing_is_left(store)


def test_slow_headers_are_cut_off(wire: Wire) -> None:
    wire.send(b"POST /v1/jobs HTTP/1.1\r\nHost: mesh\r\n")
    started_s = time.monotonic()
    status, _ = wire.answer()
    assert status in (0, 408)
    assert time.monotonic() - started_s < BODY_TIMEOUT_S + 4


def test_a_slow_body_is_408_and_what_was_staged_is_gone(wire: Wire, store: redis.Redis) -> None:
    wire.send(head(f"Content-Length: {MOST}"), PHOTO[: 2 * CHUNK])
    assert until(lambda: store.hget("{mesh:0}:reserved", "")), "the pieces were staged"
    status, text = wire.answer()
    assert status == 408, text
    assert b"body-timeout" in text
    assert until(lambda: nothing_is_left(store))


def test_a_trickle_does_not_extend_the_deadline(wire: Wire) -> None:
    wire.send(head(f"Content-Length: {MOST}"), PHOTO[:100])
    wire.socket.settimeout(0.05)
    started_s, received = time.monotonic(), b""
    while not received and time.monotonic() - started_s < 10:
        with contextlib.suppress(TimeoutError):
            wire.socket.sendall(b"x")
            received = wire.socket.recv(65536)
    assert received.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - started_s < BODY_TIMEOUT_S + 2


def test_a_client_that_goes_in_mid_upload_leaves_no_job(url: str, store: redis.Redis) -> None:
    wire = Wire(url)
    with wire.socket:
        wire.send(head(f"Content-Length: {MOST}"), PHOTO[: 3 * CHUNK])
        assert until(lambda: int(store.hget("{mesh:0}:reserved", "") or 0) >= 2 * CHUNK)
    assert until(lambda: nothing_is_left(store), BODY_TIMEOUT_S + 3), "the reservation was not given back"


def test_a_retry_with_its_key_is_the_same_job(url: str, store: redis.Redis) -> None:
    fields = (f"Content-Length: {len(PHOTO)}", "Idempotency-Key: once")
    wire = Wire(url)
    with wire.socket:  # accepted, but the client is gone before the answer
        wire.send(head(*fields), PHOTO)
        assert until(lambda: store.xlen("{mesh:0}:queue:preprocess") == 1)
    again = Wire(url)
    with again.socket:
        again.send(head(*fields), PHOTO)
        status, text = again.answer()
    assert status == 202
    (key,) = store.scan_iter("{mesh:0}:key:*")
    assert store.get(key).split()[0].encode() in text
    assert store.xlen("{mesh:0}:queue:preprocess") == 1
    other = httpx.post(
        f"{url}/v1/jobs?confidence=0.9", content=PHOTO, headers={"content-type": "image/png", "idempotency-key": "once"}
    )
    assert problem(other) == (422, "idempotency-mismatch")

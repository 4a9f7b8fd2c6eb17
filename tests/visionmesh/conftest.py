"""What the tests of the client and the command line share: the fixture mesh as the default one, and pictures in a folder."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deploy.local.supervisor import LocalMesh
from tests.conftest import PHOTOS


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """A folder with a cat and a cup."""
    (tmp_path / "cat.png").write_bytes((PHOTOS / "chelsea.png").read_bytes())
    (tmp_path / "coffee.png").write_bytes((PHOTOS / "coffee.png").read_bytes())
    return tmp_path


@pytest.fixture
def default_mesh(mesh: LocalMesh, monkeypatch: pytest.MonkeyPatch) -> LocalMesh:
    """The fixture mesh, where `Client()` and the command line find it."""
    monkeypatch.setenv("VISIONMESH_URL", mesh.url)
    monkeypatch.setenv("MESH_REDIS_URL", mesh.redis_url)
    return mesh


class Scripted:
    """A real HTTP server that answers each request by the next line of a script, and remembers what it was asked.

    A line is a function of the request, or the status, headers and body to answer with; the last line repeats.
    """

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        answer = self._answer

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                answer(self)

            do_POST = do_GET  # noqa: N815 - http.server names it so

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.requests.append((handler.command, handler.path, headers, body))
        line = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if callable(line):
            line(handler)
            return
        status, answer_headers, content = line
        handler.send_response(status)
        for name, value in ({"content-length": str(len(content))} | answer_headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    def __enter__(self) -> "Scripted":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    with Scripted() as server:
        yield server


def job_answer(status: str = "succeeded", http_status: int = 200, **fields: Any) -> tuple[int, dict[str, str], bytes]:
    """An answer with a job, as the mesh gives it in JSON."""
    job = {"id": "one", "status": status, "model": "small", "track": "B", "created_at": "2026-01-01T12:00:00.000Z"} | fields
    return http_status, {"content-type": "application/json"}, json.dumps(job).encode()


def problem(status: int, code: str, detail: str = "no", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """An answer with a problem document; headers with `_` for `-`."""
    content = json.dumps({"type": f"/problems/{code}", "status": status, "code": code, "detail": detail}).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, {"content-type": "application/problem+json"} | named, content


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection without an answer."""
    handler.close_connection = True
    handler.connection.close()


Script = Callable[[BaseHTTPRequestHandler], None]

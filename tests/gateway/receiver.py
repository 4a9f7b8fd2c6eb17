"""A receiver of webhooks: answers as it is told, and keeps what came."""

import contextlib
import queue
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec


class Came(msgspec.Struct):
    path: str
    headers: dict[str, str]
    body: bytes


class Hold(msgspec.Struct):
    """An answer that is kept back: `began` is set when a webhook has come, and it is answered once `ends` is set."""

    began: threading.Event = msgspec.field(default_factory=threading.Event)
    ends: threading.Event = msgspec.field(default_factory=threading.Event)


class Receiver:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.answers: dict[str, list[tuple[int, dict[str, str]]]] = {}
        self.holds: dict[str, Hold] = {}
        self._came: dict[str, queue.Queue[Came]] = {}
        self._lock = threading.Lock()

    def answers_with(self, path: str, answers: Sequence[int | tuple[int, dict[str, str]]]) -> str:
        """The URL of a path that answers so, the last answer again and again."""
        self.answers[path] = [answer if isinstance(answer, tuple) else (answer, {}) for answer in answers]
        return self.url + path

    def next(self, path: str, timeout_s: float = 20) -> Came:
        return self.of(path).get(timeout=timeout_s)

    def of(self, path: str) -> "queue.Queue[Came]":
        with self._lock:
            return self._came.setdefault(path, queue.Queue())


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            answers = receiver.answers.get(self.path, [(204, {})])
            status, headers = answers.pop(0) if len(answers) > 1 else answers[0]
            if hold := receiver.holds.get(self.path):
                hold.began.set()
                hold.ends.wait(20)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", "0")
            self.end_headers()
            receiver.of(self.path).put(Came(self.path, {k.lower(): v for k, v in self.headers.items()}, body))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

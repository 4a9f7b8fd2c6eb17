"""Changes without an outage: each service is restarted in its turn under load, and no request fails.

A gateway process that stops closes connections on which it has read nothing yet, as HTTP servers do. A client that was about
to send there sends again under its Idempotency-Key, as ours does; where no gateway is restarted, nothing is sent twice.
"""

import os
import secrets
import signal
import threading
from collections.abc import Iterator

import httpx
import pytest

from deploy.local import ports
from deploy.local.supervisor import LocalMesh, Options
from tests.conftest import PHOTOS, Background, running_mesh

CAT = (PHOTOS / "chelsea.png").read_bytes()
SENDERS = 2


@pytest.fixture(scope="module")
def rolling(background: Background, mesh: LocalMesh) -> Iterator[LocalMesh]:
    """A mesh with a Redis of its own, so that only its own workers take its jobs."""
    options = Options(port=ports.free(), environ={"MESH_HEARTBEAT_S": "0.5"}, triton_url=mesh.triton_url)
    with running_mesh(background, options) as own:
        yield own


class Load:
    """Clients that send one picture after the other, and what they were answered."""

    def __init__(self, url: str, *, sends_again: bool) -> None:
        self._sends_again = sends_again
        self.answers: list[str] = []
        self._url = url
        self._stop = threading.Event()
        self._answered = threading.Condition()
        self._threads = [threading.Thread(target=self._send) for _ in range(SENDERS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int) -> None:
        """Wait for so many answers more."""
        with self._answered:
            wanted = len(self.answers) + count
            assert self._answered.wait_for(lambda: len(self.answers) >= wanted, timeout=60)

    def _send(self) -> None:
        while not self._stop.is_set():
            headers = {"content-type": "image/png", "prefer": "wait=25", "idempotency-key": secrets.token_hex(8)}
            try:
                answer = str(self._post(headers)["status"])
            except (httpx.HTTPError, ValueError, KeyError) as error:
                answer = repr(error)
            with self._answered:
                self.answers.append(answer)
                self._answered.notify_all()

    def _post(self, headers: dict[str, str]) -> dict[str, object]:
        try:
            return httpx.post(f"{self._url}/v1/jobs", content=CAT, headers=headers, timeout=30).json()
        except (httpx.RemoteProtocolError, httpx.ReadError):
            if not self._sends_again:
                raise
            return httpx.post(f"{self._url}/v1/jobs", content=CAT, headers=headers, timeout=30).json()


def started(mesh: LocalMesh, kind: str) -> set[int]:
    return {beat["pid"] for beat in httpx.get(f"{mesh.url}/health").json()["workers"] if beat["kind"] == kind}


@pytest.mark.parametrize(
    ("part", "number"), [("preprocess", signal.SIGTERM), ("inference", signal.SIGTERM), ("gateway", signal.SIGHUP)]
)
def test_a_restart_under_load_fails_no_request(rolling: LocalMesh, part: str, number: signal.Signals) -> None:
    old = started(rolling, part)
    with Load(rolling.url, sends_again=part == "gateway") as load:
        load.more(4)
        os.kill(rolling.processes[part].pid or 0, number)
        for _ in range(60):
            load.more(1)
            if (now := started(rolling, part)) and not now & old:
                break
        else:
            pytest.fail(f"{part} was not replaced")
        load.more(4)
    assert set(load.answers) == {"succeeded"}, load.answers

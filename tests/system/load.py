"""Clients that send one picture after the other while a test changes something, none of which may fail."""

import secrets
import threading
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from tests.conftest import PHOTOS

CAT = (PHOTOS / "chelsea.png").read_bytes()


class Load:
    """`clients` of them, from the beginning of the block to its end, and the jobs they were answered."""

    def __init__(
        self,
        url: str,
        *,
        clients: int = 2,
        picture: bytes = CAT,
        query: Mapping[str, str] | None = None,
        sends_again: bool = False,
    ) -> None:
        """With `sends_again`, what met a connection that was closed is sent once more, under its Idempotency-Key."""
        self.jobs: list[dict[str, Any]] = []
        self._url = url
        self._picture = picture
        self._query = dict(query or {})
        self._sends_again = sends_again
        self._stop = threading.Event()
        self._ended = threading.Condition()
        self._threads = [threading.Thread(target=self._send) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert {job.get("status") for job in self.jobs} == {"succeeded"}, self.jobs

    def until(self, holds: Callable[[], object]) -> None:
        """Wait until something holds, looked at after every job."""
        with self._ended:
            assert self._ended.wait_for(holds, timeout=60)

    def more(self, count: int) -> None:
        """Wait for so many jobs more."""
        wanted = len(self.jobs) + count
        self.until(lambda: len(self.jobs) >= wanted)

    def _send(self) -> None:
        with httpx.Client(base_url=self._url, timeout=40) as client:
            while not self._stop.is_set():
                headers = {"content-type": "image/png", "prefer": "wait=30", "idempotency-key": secrets.token_hex(8)}
                try:
                    job = self._post(client, headers)
                except (httpx.HTTPError, ValueError) as error:
                    job = {"error": repr(error)}
                with self._ended:
                    self.jobs.append(job)
                    self._ended.notify_all()

    def _post(self, client: httpx.Client, headers: dict[str, str]) -> dict[str, Any]:
        try:
            return client.post("/v1/jobs", params=self._query, content=self._picture, headers=headers).json()
        except (httpx.RemoteProtocolError, httpx.ReadError):
            if not self._sends_again:
                raise
            return client.post("/v1/jobs", params=self._query, content=self._picture, headers=headers).json()

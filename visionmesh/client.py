"""A small client of a mesh's HTTP API: submit, wait, read."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from shared.messages import Job

WAIT_S = 20.0
TIMEOUT = httpx.Timeout(10.0, read=WAIT_S + 15.0, write=60.0)


class ClientError(Exception):
    """The mesh cannot be reached or refuses. The message is one line; `code` is the problem's, if it sent one."""

    def __init__(self, message: str, *, code: str = "", status: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class Client:
    """A mesh at a URL. Use as a context manager."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._http = httpx.Client(base_url=self._url, timeout=TIMEOUT, headers={"accept": "application/msgpack"})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    def detect(self, picture: Path, *, model: str = "", confidence: float | None = None, classes: str = "") -> Job:
        """Send a picture and wait for its job's end, however long the mesh takes.

        Raises:
            ClientError: the file cannot be read, or the mesh cannot be reached or refuses it. A job that failed is returned.
        """
        try:
            body = picture.read_bytes()
        except OSError as error:
            raise ClientError(f"{picture}: {error.strerror}") from None
        query = {"model": model, "confidence": "" if confidence is None else str(confidence), "classes": classes}
        job = self._job(
            "POST",
            "/v1/jobs",
            params={name: value for name, value in query.items() if value},
            content=body,
            headers={"content-type": "application/octet-stream", "prefer": f"wait={WAIT_S:g}"},
        )
        while job.finished_at is None:
            job = self._job("GET", f"/v1/jobs/{job.id}", params={"wait": f"{WAIT_S:g}"})
        return job

    def health(self) -> dict[str, Any]:
        """The mesh's `/health`.

        Raises:
            ClientError: the mesh cannot be reached.
        """
        return msgspec.msgpack.decode(self._send("GET", "/health").content)

    def _job(self, method: str, path: str, **arguments: Any) -> Job:
        return msgspec.msgpack.decode(self._send(method, path, **arguments).content, type=Job)

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.TimeoutException:
            raise ClientError(f"no answer from {self._url} in time") from None
        except httpx.HTTPError as error:
            raise ClientError(
                f"cannot reach {self._url} ({error}); start a mesh with `visionmesh up` or name one with --url"
            ) from None
        except httpx.InvalidURL as error:
            raise ClientError(f"{self._url!r} is not a URL: {error}") from None
        if response.is_error:
            problem: Mapping[str, Any] = {}
            with contextlib.suppress(ValueError):
                problem = response.json()
            detail = problem.get("detail") or f"HTTP status {response.status_code}"
            raise ClientError(detail, code=problem.get("code", ""), status=response.status_code)
        return response

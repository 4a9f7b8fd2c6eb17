"""Where a mesh answers, and how httpx is used for it: one pool of connections, and a timeout for everything."""

import os
from typing import Any

import httpx
import msgspec

from shared.errors import InvalidParameter
from visionmesh.errors import ClientError, TimedOut, Unreachable
from visionmesh.exchange import Answer, Request

DEFAULT_URL = "http://127.0.0.1:9600"
CONNECT_TIMEOUT_S = 5.0
WRITE_TIMEOUT_S = 60.0
POOL_TIMEOUT_S = 120.0
CONNECTIONS = 64


class Address(msgspec.Struct, frozen=True):
    """A mesh's URL and the key to it. Made by `address_of`."""

    url: str
    api_key: str = ""

    def http_options(self) -> dict[str, Any]:
        """What `httpx.Client` and `httpx.AsyncClient` are made with."""
        headers = {"accept": "application/msgpack, application/json;q=0.5", "user-agent": "visionmesh-client"}
        if self.api_key:
            headers["authorization"] = f"Bearer {self.api_key}"
        return {
            "base_url": self.url,
            "headers": headers,
            "timeout": httpx.Timeout(CONNECT_TIMEOUT_S),
            "limits": httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
        }

    def failure(self, error: httpx.HTTPError) -> ClientError:
        """What httpx met, as an error of ours."""
        if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
            return TimedOut(f"no answer from {self.url} in time")
        said = str(error) or type(error).__name__
        return Unreachable(f"cannot reach {self.url} ({said}); start a mesh with `visionmesh up`, or name one by its URL")


def address_of(url: str = "", api_key: str = "") -> Address:
    """The mesh at `url`; by default the one that VISIONMESH_URL names, or one on this machine. The key is by default
    VISIONMESH_API_KEY.

    Raises:
        InvalidParameter: it is no URL.
    """
    url = (url or os.environ.get("VISIONMESH_URL") or DEFAULT_URL).rstrip("/")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidParameter(f"{url!r} is not a URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host or " " in url:
        raise InvalidParameter(f"{url!r} is not a URL; one looks like {DEFAULT_URL}")
    return Address(url, api_key or os.environ.get("VISIONMESH_API_KEY", ""))


def http_arguments(request: Request) -> dict[str, Any]:
    """A request as the arguments of httpx' `request` and `stream`."""
    return {
        "method": request.method,
        "url": request.path,
        "params": request.params,
        "headers": request.headers,
        "content": request.content,
        "timeout": httpx.Timeout(CONNECT_TIMEOUT_S, read=request.read_timeout_s, write=WRITE_TIMEOUT_S, pool=POOL_TIMEOUT_S),
    }


def answer_of(response: httpx.Response) -> Answer:
    """An answer that was read as a whole."""
    return Answer(status=response.status_code, headers=response.headers, content=response.content)

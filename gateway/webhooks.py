"""One webhook on its way out: the document, its signature (Standard Webhooks), and a POST that reaches public addresses only.

    webhook-id: the job's or batch's ID, the same for every try
    webhook-timestamp: seconds since the epoch, of this try
    webhook-signature: v1,BASE64(HMAC-SHA256(secret, "ID.TIMESTAMP.BODY")), one for each secret

(https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md)
"""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable
from typing import Self, cast

import httpcore
import msgspec

from gateway import addresses
from gateway.addresses import Exceptions, RefusedError
from shared.messages import Batch, Job
from shared.settings import Settings

GONE = 410
RETRY_MOST_S = 4 * 3600.0
RETRY_FACTOR = 4

_encode = msgspec.json.Encoder().encode


class Sent(msgspec.Struct, frozen=True):
    """What became of one try. `is_final`: another would not help."""

    took_ms: float
    status: int | None = None
    error: str | None = None
    retry_after_s: float = 0.0
    is_final: bool = False

    @property
    def delivered(self) -> bool:
        """Whether the receiver has taken it."""
        return self.status is not None and 200 <= self.status < 300


def document(subject: Job | Batch) -> bytes:
    """What is posted: `type`, `timestamp` and `data`, as JSON. A batch comes without its results; they can be read."""
    if isinstance(subject, Job):
        kind, at = f"job.{subject.status}", subject.finished_at
    else:
        kind, at = "batch.finished", subject.finished_at
    return _encode({"type": kind, "timestamp": at or subject.created_at, "data": subject})


def signatures(secrets: str, webhook_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`: one signature for each of the secrets, separated by spaces."""
    content = f"{webhook_id}.{timestamp}.".encode() + body
    keys = [base64.b64decode(secret.removeprefix("whsec_")) for secret in secrets.split()]
    return " ".join("v1," + base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode() for key in keys)


def pause_s(first_s: float, attempt: int, retry_after_s: float = 0.0) -> float:
    """How long to wait after this try, counted from 1, or longer if the receiver asked for it. Without jitter."""
    return min(max(first_s * RETRY_FACTOR ** (attempt - 1), retry_after_s), RETRY_MOST_S)


class Sender:
    """Posts webhooks. Use as an async context manager."""

    def __init__(self, settings: Settings) -> None:
        self._secrets = settings.webhook_secret
        self._timeout_s = settings.webhook_timeout_s
        self._exceptions = Exceptions.of(settings.webhook_private_hosts)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_connections=64,
            max_keepalive_connections=0,  # a kept connection would be one whose address was checked long ago
            network_backend=_Guarded(self._exceptions),
        )

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.aclose()

    async def send(self, url: str, webhook_id: str, body: bytes) -> Sent:
        """Try once. Redirects are not followed: where they lead was not checked by whoever signed the request."""
        started_s = time.perf_counter()

        def sent(
            status: int | None = None, error: str | None = None, *, retry_after_s: float = 0.0, final: bool = False
        ) -> Sent:
            return Sent(round((time.perf_counter() - started_s) * 1000, 1), status, error, retry_after_s, final)

        timestamp = int(time.time())
        headers = {
            "host": _host(url),
            "content-type": "application/json",
            "content-length": str(len(body)),
            "user-agent": "visionmesh-webhooks/1",
            "webhook-id": webhook_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signatures(self._secrets, webhook_id, timestamp, body),
        }
        try:
            addresses.check_url(url, self._exceptions)
            async with (
                asyncio.timeout(self._timeout_s),
                self._pool.stream("POST", url, headers=list(headers.items()), content=body) as response,
            ):
                status = response.status  # what else it says nobody reads
                answered = {name.lower(): value for name, value in response.headers}
        except RefusedError as error:
            return sent(error=str(error), final=True)
        except TimeoutError:
            return sent(error=f"no answer within {self._timeout_s:g} s")
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            return sent(error=f"{type(error).__name__}: {error}"[:200])
        if 200 <= status < 300:
            return sent(status)
        why = "a redirect is not followed" if 300 <= status < 400 else f"the receiver answered {status}"
        asked = answered.get(b"retry-after", b"")
        return sent(status, why, retry_after_s=float(asked) if asked.isdigit() else 0.0, final=status == GONE)


class _Guarded(httpcore.AsyncNetworkBackend):
    """Resolves a name itself, checks what it resolves to, and connects to just that: asked again, it might answer otherwise."""

    def __init__(self, exceptions: Exceptions) -> None:
        self._inner = cast("httpcore.AsyncNetworkBackend", httpcore.AnyIOBackend())
        self._exceptions = exceptions

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        resolved = list(dict.fromkeys(str(address[0]).partition("%")[0] for *_, address in found))
        if host not in self._exceptions.hosts:
            for address in resolved:  # all of them: a name that mixes public and private addresses means no good
                addresses.check_address(ipaddress.ip_address(address), self._exceptions)
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in resolved:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _host(url: str) -> str:
    parts = httpcore.URL(url)
    default = {b"http": 80, b"https": 443}[parts.scheme]
    host = parts.host.decode()
    return host if parts.port in (None, default) else f"{host}:{parts.port}"

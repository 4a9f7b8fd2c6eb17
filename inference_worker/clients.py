"""A client for each model, made once, at most so many; the least recently used goes when there is one too many, after its
calls have ended."""

from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import structlog

from inference_worker.signature import Signature

Api = TypeVar("Api")

log = structlog.get_logger()


class Client(Generic[Api]):
    """One model's client, how many calls are in it, and what its model's signature was when it was last read."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.signature: Signature | None = None
        self.calls = 0
        self.is_evicted = False


class Clients(Generic[Api]):
    """Clients by the model's name in Triton; `make` makes one and `close` ends it."""

    def __init__(self, make: Callable[[], Api], close: Callable[[Api], Awaitable[None]], most: int) -> None:
        self._make = make
        self._close = close
        self._most = most
        self._clients: OrderedDict[str, Client[Api]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._clients)

    @asynccontextmanager
    async def of(self, name: str) -> AsyncGenerator[Client[Api]]:
        """The client of a model, for one call."""
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = Client(self._make())
            log.info("triton.client_created", triton_model=name)
        self._clients.move_to_end(name)
        client.calls += 1
        try:
            if len(self._clients) > self._most:
                oldest_name, oldest = self._clients.popitem(last=False)
                oldest.is_evicted = True
                log.info("triton.client_evicted", triton_model=oldest_name)
                await self._close_if_done(oldest)
            yield client
        finally:
            client.calls -= 1
            await self._close_if_done(client)

    async def close(self) -> None:
        """Close all, whatever is in them."""
        clients, self._clients = self._clients, OrderedDict()
        for client in clients.values():
            await self._close(client.api)

    async def _close_if_done(self, client: Client[Api]) -> None:
        if client.is_evicted and not client.calls:
            await self._close(client.api)

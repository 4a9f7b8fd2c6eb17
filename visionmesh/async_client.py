"""The client for asyncio: the same calls as `visionmesh.client`, awaited."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from visionmesh import flows, gathering, pictures, results, subscribing
from visionmesh.address import address_of
from visionmesh.client import TIMEOUT_S
from visionmesh.connectors import AsyncConnector
from visionmesh.errors import MeshError
from visionmesh.exchange import Retries
from visionmesh.flows import DetectOptions
from visionmesh.gathering import OnProgress, Tally
from visionmesh.handles import AsyncJobHandle
from visionmesh.pictures import Picture
from visionmesh.results import Result
from visionmesh.subscribing import Wanted

T = TypeVar("T")


class AsyncClient:
    """A mesh at a URL, with one pool of connections, for one event loop. Use as an async context manager.

    >>> import asyncio
    >>> from visionmesh import AsyncClient
    >>> async def main():
    ...     async with AsyncClient() as mesh:
    ...         cat, coffee = await asyncio.gather(mesh.detect("cat.png"), mesh.detect("coffee.png"))
    ...     print([found.label for found in cat], [found.label for found in coffee])
    >>> asyncio.run(main())
    ['cat'] ['cup', 'dining table']

    The arguments are those of `Client`.
    """

    def __init__(
        self, url: str = "", *, api_key: str = "", timeout_s: float = TIMEOUT_S, retries: Retries | None = None
    ) -> None:
        self._connector = AsyncConnector(address_of(url, api_key), retries or Retries(), timeout_s)

    @property
    def url(self) -> str:
        """Where the mesh answers."""
        return self._connector.address.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._connector.close()

    async def detect(self, picture: Picture, *, timeout_s: float | None = None, **options: Unpack[DetectOptions]) -> Result:
        """Send a picture and wait for what is on it; see `Client.detect`.

        Raises:
            MeshError: see `Client.detect`.
        """
        return (await self._detect(picture, options, timeout_s)).raise_for_error()

    async def submit(self, picture: Picture, *, idempotency_key: str = "", **options: Unpack[DetectOptions]) -> AsyncJobHandle:
        """Send a picture and do not wait; see `Client.submit`.

        >>> async def main():
        ...     async with AsyncClient() as mesh:
        ...         job = await mesh.submit("cat.png")
        ...         async for step in job.events():
        ...             pass
        ...         print(step.status)
        >>> asyncio.run(main())
        succeeded

        Raises:
            MeshError: see `Client.submit`.
        """
        content = await asyncio.to_thread(pictures.read, picture)
        accepted = await self._connector.run(
            flows.submit(content, options, self._connector.terms(), idempotency_key=idempotency_key)
        )
        return AsyncJobHandle(self._connector, results.sent_as(accepted, picture))

    async def job(self, job_id: str) -> AsyncJobHandle:
        """A job that was submitted before, as it is now.

        Raises:
            UnknownJob, ExpiredJob: the mesh never gave this ID, or no longer keeps the job.
        """
        return AsyncJobHandle(self._connector, await self._connector.run(flows.read(job_id, self._connector.terms())))

    async def detect_many(
        self,
        pictures: Iterable[Picture],
        *,
        concurrency: int = gathering.CONCURRENCY,
        progress: OnProgress | None = None,
        **options: Unpack[DetectOptions],
    ) -> AsyncGenerator[Result]:
        """Send many pictures, `concurrency` at a time, and give their results in order; see `Client.detect_many`.

        >>> async def main():
        ...     async with AsyncClient() as mesh:
        ...         async for result in mesh.detect_many(["cat.png", "coffee.png"], classes=["cat", "cup"]):
        ...             print(result.source, [found.label for found in result])
        >>> asyncio.run(main())
        cat.png ['cat']
        coffee.png ['cup']

        Raises:
            MeshError: what would befall every picture: the mesh cannot be reached, a wrong model, option or key.
        """
        tally = Tally(pictures, progress)
        at_once = asyncio.Semaphore(concurrency)
        begun: deque[asyncio.Task[Result]] = deque()
        try:
            for picture in pictures:
                begun.append(asyncio.create_task(self._detect_one(picture, options, at_once)))
                while begun and (begun[0].done() or len(begun) >= concurrency * gathering.AHEAD):
                    yield tally.count(await begun.popleft())
            while begun:
                yield tally.count(await begun.popleft())
        finally:
            for task in begun:
                task.cancel()
            await asyncio.gather(*begun, return_exceptions=True)

    def subscribe(
        self, *, redis_url: str = "", model: str = "", group: str = "", consumer: str = "", after: str = ""
    ) -> AbstractAsyncContextManager[AsyncIterator[Result]]:
        """Every job that finishes, whoever sent it, from the mesh's Redis; see `Client.subscribe` and `Wanted`.

        >>> async def main():
        ...     async with AsyncClient() as mesh, mesh.subscribe(group="archive", consumer="one") as finished:
        ...         job = await mesh.submit("cat.png")
        ...         async for result in finished:
        ...             if result.id == job.id:
        ...                 print(result.status)
        ...                 break
        >>> asyncio.run(main())
        succeeded

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        return subscribing.results(Wanted(redis_url=redis_url, model=model, group=group, consumer=consumer, after=after))

    async def health(self) -> dict[str, Any]:
        """The mesh's `/health`: its parts, workers, queues and models."""
        return await self._connector.run(flows.document("/health", self._connector.terms()))

    async def models(self) -> list[dict[str, Any]]:
        """The models of the mesh: name, track, whether it is ready, its defaults."""
        return (await self._connector.run(flows.document("/v1/models", self._connector.terms())))["models"]

    async def model(self, name: str) -> dict[str, Any]:
        """One model of the mesh with its labels.

        Raises:
            UnknownModel: there is none of this name.
        """
        return await self._connector.run(flows.document(f"/v1/models/{name}", self._connector.terms()))

    async def _detect(self, picture: Picture, options: DetectOptions, timeout_s: float | None = None) -> Result:
        content = await asyncio.to_thread(pictures.read, picture)  # a disk may be slow, and PNG is work
        flow = flows.detect(content, options, self._connector.terms(timeout_s))
        return results.sent_as(await self._connector.run(flow), picture)

    async def _detect_one(self, picture: Picture, options: DetectOptions, at_once: asyncio.Semaphore) -> Result:
        async with at_once:
            try:
                return await self._detect(picture, options)
            except gathering.OF_ALL:
                raise
            except MeshError as error:
                return results.sent_as(results.refused(error, options.get("model", ""), time.time() * 1000), picture)

"""The client: a mesh at a URL. `visionmesh.async_client` is the same for asyncio; what both do is in `visionmesh.flows`."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from visionmesh import flows, gathering, pictures, results, subscribing
from visionmesh.address import address_of
from visionmesh.connectors import Connector
from visionmesh.errors import MeshError
from visionmesh.exchange import Retries
from visionmesh.flows import DetectOptions
from visionmesh.gathering import OnProgress, Tally
from visionmesh.handles import JobHandle
from visionmesh.pictures import Picture
from visionmesh.results import Result
from visionmesh.subscribing import Wanted

TIMEOUT_S = 300.0

T = TypeVar("T")


class Client:
    """A mesh at a URL, with one pool of connections; safe to share among threads. Use as a context manager.

    >>> from visionmesh import Client
    >>> with Client() as mesh:
    ...     result = mesh.detect("cat.png", confidence=0.5)
    >>> result.status, [found.label for found in result]
    ('succeeded', ['cat'])

    `url` is by default VISIONMESH_URL or http://127.0.0.1:9600, `api_key` VISIONMESH_API_KEY. `timeout_s` bounds every call as
    a whole, with its retries and its waiting.
    """

    def __init__(
        self, url: str = "", *, api_key: str = "", timeout_s: float = TIMEOUT_S, retries: Retries | None = None
    ) -> None:
        self._connector = Connector(address_of(url, api_key), retries or Retries(), timeout_s)

    @property
    def url(self) -> str:
        """Where the mesh answers."""
        return self._connector.address.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._connector.close()

    def detect(self, picture: Picture, *, timeout_s: float | None = None, **options: Unpack[DetectOptions]) -> Result:
        """Send a picture and wait for what is on it. Options: `model`, `confidence`, `iou`, `max_detections`, `classes`.

        Raises:
            JobError: the job failed; the class says why.
            RequestError: the mesh refused the picture or an option.
            ClientError: the picture cannot be read, the mesh not be reached, or time ran out.
        """
        return self._detect(picture, options, timeout_s).raise_for_error()

    def submit(self, picture: Picture, *, idempotency_key: str = "", **options: Unpack[DetectOptions]) -> JobHandle:
        """Send a picture and do not wait.

        A key is made for every call, so that a retry never makes a second job; with one of yours, nor does a second call.

        >>> with Client() as mesh:
        ...     job = mesh.submit("cat.png", model="small")
        ...     len(job.result().detections)
        1

        Raises:
            RequestError: the mesh refused the picture or an option.
            ClientError: the picture cannot be read, the mesh not be reached, or time ran out.
        """
        content = pictures.read(picture)
        accepted = self._connector.run(flows.submit(content, options, self._connector.terms(), idempotency_key=idempotency_key))
        return JobHandle(self._connector, results.sent_as(accepted, picture))

    def job(self, job_id: str) -> JobHandle:
        """A job that was submitted before, as it is now.

        Raises:
            UnknownJob, ExpiredJob: the mesh never gave this ID, or no longer keeps the job.
        """
        return JobHandle(self._connector, self._connector.run(flows.read(job_id, self._connector.terms())))

    def detect_many(
        self,
        pictures: Iterable[Picture],
        *,
        concurrency: int = gathering.CONCURRENCY,
        progress: OnProgress | None = None,
        **options: Unpack[DetectOptions],
    ) -> Iterator[Result]:
        """Send many pictures, `concurrency` at a time, and give their results in the order of the pictures.

        A picture that fails does not end the rest: its result has `ok` false and says why in `error`.

        >>> with Client() as mesh:
        ...     for result in mesh.detect_many(["cat.png", "coffee.png"]):
        ...         print(result.source, [found.label for found in result])
        cat.png ['cat']
        coffee.png ['cup', 'dining table']

        Raises:
            MeshError: what would befall every picture: the mesh cannot be reached, a wrong model, option or key.
        """
        tally = Tally(pictures, progress)
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="visionmesh")
        begun: deque[Future[Result]] = deque()
        try:
            for picture in pictures:
                begun.append(pool.submit(self._detect_one, picture, options))
                while begun and (begun[0].done() or len(begun) >= concurrency * gathering.AHEAD):
                    yield tally.count(begun.popleft().result())
            while begun:
                yield tally.count(begun.popleft().result())
        finally:
            pool.shutdown(cancel_futures=True)

    @contextmanager
    def subscribe(
        self, *, redis_url: str = "", model: str = "", group: str = "", consumer: str = "", after: str = ""
    ) -> Generator[Iterator[Result]]:
        """Every job that finishes, whoever sent it, from the mesh's Redis; see `Wanted` for the options.

        Without `group` and `after` it is pub/sub: quick, and what is missed is gone. With either it is the durable stream. The
        subscription stands when the block begins.

        >>> with Client() as mesh, mesh.subscribe(model="small") as finished:
        ...     job = mesh.submit("cat.png")
        ...     next(finished).id == job.id
        True

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        wanted = Wanted(redis_url=redis_url, model=model, group=group, consumer=consumer, after=after)
        with asyncio.Runner() as runner:
            source = subscribing.results(wanted)
            stream = runner.run(_awaited(source.__aenter__()))
            try:
                yield _drained(runner, stream)
            finally:
                runner.run(_awaited(source.__aexit__(None, None, None)))

    def health(self) -> dict[str, Any]:
        """The mesh's `/health`: its parts, workers, queues and models."""
        return self._connector.run(flows.document("/health", self._connector.terms()))

    def models(self) -> list[dict[str, Any]]:
        """The models of the mesh: name, track, whether it is ready, its defaults."""
        return (self._connector.run(flows.document("/v1/models", self._connector.terms())))["models"]

    def model(self, name: str) -> dict[str, Any]:
        """One model of the mesh with its labels.

        Raises:
            UnknownModel: there is none of this name.
        """
        return self._connector.run(flows.document(f"/v1/models/{name}", self._connector.terms()))

    def _detect(self, picture: Picture, options: DetectOptions, timeout_s: float | None = None) -> Result:
        content = pictures.read(picture)
        return results.sent_as(
            self._connector.run(flows.detect(content, options, self._connector.terms(timeout_s))),
            picture,
        )

    def _detect_one(self, picture: Picture, options: DetectOptions) -> Result:
        try:
            return self._detect(picture, options)
        except gathering.OF_ALL:
            raise
        except MeshError as error:
            return results.sent_as(results.refused(error, options.get("model", ""), time.time() * 1000), picture)


def _drained(runner: asyncio.Runner, stream: AsyncIterator[Result]) -> Iterator[Result]:
    with contextlib.suppress(StopAsyncIteration):
        while True:
            yield runner.run(_awaited(anext(stream)))


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable

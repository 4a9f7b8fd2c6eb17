"""The two ways to perform a flow: blocking, and in an event loop. All that either knows is httpx and sleep."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from typing import TypeVar

import httpx

from visionmesh import errors
from visionmesh.address import Address, answer_of, http_arguments
from visionmesh.errors import ClientError
from visionmesh.exchange import NOTHING, Answer, Deadline, Flow, Pause, Request, Retries, Terms
from visionmesh.following import Following
from visionmesh.results import Result

T = TypeVar("T")


class _Manners:
    """What both have: an address, how to retry, and how long a call may take."""

    def __init__(self, address: Address, retries: Retries, timeout_s: float) -> None:
        self.address = address
        self.retries = retries
        self._timeout_s = timeout_s

    def terms(self, timeout_s: float | None = None) -> Terms:
        """The terms of a call that begins now."""
        return Terms(self.retries, Deadline(self._timeout_s if timeout_s is None else timeout_s))


class Connector(_Manners):
    """Performs flows in the calling thread; safe to share among threads."""

    def __init__(self, address: Address, retries: Retries, timeout_s: float) -> None:
        super().__init__(address, retries, timeout_s)
        self._http = httpx.Client(**address.http_options())

    def run(self, flow: Flow[T]) -> T:
        """Perform a flow to its end."""
        try:
            step = next(flow)
            while True:
                try:
                    answer = self._perform(step)
                except ClientError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as end:
            return end.value

    def _perform(self, step: Request | Pause) -> Answer:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return NOTHING
        try:
            return answer_of(self._http.request(**http_arguments(step)))
        except httpx.HTTPError as error:
            raise self.address.failure(error) from None

    def events(self, following: Following) -> Iterator[Result]:
        """Follow a job's events for as long as the connection holds.

        Raises:
            MeshError: it is refused or breaks.
        """
        try:
            with self._http.stream(**http_arguments(following.request())) as response:
                if response.is_error:
                    raise errors.of_answer(response.status_code, response.headers, response.read())
                for chunk in response.iter_bytes():
                    yield from following.hear(chunk)
                    if following.ended:
                        return
        except httpx.HTTPError as error:
            raise self.address.failure(error) from None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


class AsyncConnector(_Manners):
    """Performs flows in one event loop."""

    def __init__(self, address: Address, retries: Retries, timeout_s: float) -> None:
        super().__init__(address, retries, timeout_s)
        self._http = httpx.AsyncClient(**address.http_options())

    async def run(self, flow: Flow[T]) -> T:
        """Perform a flow to its end."""
        try:
            step = next(flow)
            while True:
                try:
                    answer = await self._perform(step)
                except ClientError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as end:
            return end.value

    async def _perform(self, step: Request | Pause) -> Answer:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return NOTHING
        try:
            return answer_of(await self._http.request(**http_arguments(step)))
        except httpx.HTTPError as error:
            raise self.address.failure(error) from None

    async def events(self, following: Following) -> AsyncGenerator[Result]:
        """Follow a job's events for as long as the connection holds.

        Raises:
            MeshError: it is refused or breaks.
        """
        try:
            async with self._http.stream(**http_arguments(following.request())) as response:
                if response.is_error:
                    raise errors.of_answer(response.status_code, response.headers, await response.aread())
                async for chunk in response.aiter_bytes():
                    for step in following.hear(chunk):
                        yield step
                    if following.ended:
                        return
        except httpx.HTTPError as error:
            raise self.address.failure(error) from None

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

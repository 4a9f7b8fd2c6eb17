"""A job in the mesh, held by its ID: where it is, its end, its events."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterator

from shared.messages import Status
from visionmesh import flows, results
from visionmesh.connectors import AsyncConnector, Connector
from visionmesh.errors import MeshError
from visionmesh.exchange import Flow
from visionmesh.following import Following
from visionmesh.results import Result


class JobHandle:
    """A job in the mesh. Made by `Client.submit` and `Client.job`; every method asks the mesh."""

    def __init__(self, connector: Connector, latest: Result) -> None:
        self._connector = connector
        self.latest = latest
        """The job as it was last seen."""

    @property
    def id(self) -> str:
        """The job's ID."""
        return self.latest.id

    def status(self) -> Status:
        """Where the job is now."""
        return self._see(flows.read(self.id, self._connector.terms())).status

    def wait(self, timeout_s: float | None = None) -> Result:
        """The job once it has ended, however it ended.

        Raises:
            TimedOut: it has not within `timeout_s`; it goes on.
        """
        return self._see(flows.wait(self.id, self._connector.terms(timeout_s)))

    def result(self, timeout_s: float | None = None) -> Result:
        """The job once it has succeeded.

        Raises:
            JobError: it failed or was canceled; the class says why.
            TimedOut: it has not ended within `timeout_s`; it goes on.
        """
        return self.wait(timeout_s).raise_for_error()

    def cancel(self) -> Result:
        """Cancel the job; one that has ended stays as it ended."""
        return self._see(flows.cancel(self.id, self._connector.terms()))

    def events(self) -> Iterator[Result]:
        """The job at each of its steps, as they happen, until it has ended.

        >>> with Client() as mesh:
        ...     for step in mesh.submit("cat.png").events():
        ...         pass
        >>> step.status
        'succeeded'
        """
        following = Following(self.id, self._connector.retries)
        while not following.ended:
            lost = None
            try:
                if following.by_polling:
                    for ask in (self.status, self.wait):
                        ask()
                        if following.is_news(self.latest):
                            yield self.latest
                    return
                for step in self._connector.events(following):
                    self._remember(step)
                    yield step
            except MeshError as error:
                lost = error
            if not following.ended:
                time.sleep(following.lost(lost))

    def _see(self, flow: Flow[Result]) -> Result:
        return self._remember(self._connector.run(flow))

    def _remember(self, seen: Result) -> Result:
        if self.latest.source:
            results.sent_as(seen, self.latest.source)
        self.latest = seen
        return seen


class AsyncJobHandle:
    """A job in the mesh. Made by `AsyncClient.submit` and `AsyncClient.job`; every method asks the mesh."""

    def __init__(self, connector: AsyncConnector, latest: Result) -> None:
        self._connector = connector
        self.latest = latest
        """The job as it was last seen."""

    @property
    def id(self) -> str:
        """The job's ID."""
        return self.latest.id

    async def status(self) -> Status:
        """Where the job is now."""
        return (await self._see(flows.read(self.id, self._connector.terms()))).status

    async def wait(self, timeout_s: float | None = None) -> Result:
        """The job once it has ended, however it ended.

        Raises:
            TimedOut: it has not within `timeout_s`; it goes on.
        """
        return await self._see(flows.wait(self.id, self._connector.terms(timeout_s)))

    async def result(self, timeout_s: float | None = None) -> Result:
        """The job once it has succeeded.

        Raises:
            JobError: it failed or was canceled; the class says why.
            TimedOut: it has not ended within `timeout_s`; it goes on.
        """
        return (await self.wait(timeout_s)).raise_for_error()

    async def cancel(self) -> Result:
        """Cancel the job; one that has ended stays as it ended."""
        return await self._see(flows.cancel(self.id, self._connector.terms()))

    async def events(self) -> AsyncGenerator[Result]:
        """The job at each of its steps, as they happen, until it has ended."""
        following = Following(self.id, self._connector.retries)
        while not following.ended:
            lost = None
            try:
                if following.by_polling:
                    for ask in (self.status, self.wait):
                        await ask()
                        if following.is_news(self.latest):
                            yield self.latest
                    return
                async with contextlib.aclosing(self._connector.events(following)) as steps:
                    async for step in steps:
                        self._remember(step)
                        yield step
            except MeshError as error:
                lost = error
            if not following.ended:
                await asyncio.sleep(following.lost(lost))

    async def _see(self, flow: Flow[Result]) -> Result:
        return self._remember(await self._connector.run(flow))

    def _remember(self, seen: Result) -> Result:
        if self.latest.source:
            results.sent_as(seen, self.latest.source)
        self.latest = seen
        return seen

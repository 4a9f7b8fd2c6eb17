"""The batching loops of the models that the registry names at this moment, one for each version.

A row that is new gets a loop. One that has gone keeps its loop for a while, until what was accepted for it has ended. One
that has changed has its loop ended, which finishes what it has in hand, and gets its new loop only then: both would sit on the
same seat of the queue.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import structlog

from inference_worker.batching import Batching
from shared.live_registry import LiveRegistry
from shared.models import Model

FOLLOW_S = 0.5
"""How often the registry is followed."""

STAY_S = 5.0
"""How long the loop of a row that has gone goes on at least: gateways and preprocess workers may not have seen it yet."""

log = structlog.get_logger()


class Loops:
    """A loop per model. `make` gives the loop of a model, or `None` if this worker does not run its track; `has_left(model,
    for_s)` is `Store.has_left`."""

    def __init__(
        self,
        registry: LiveRegistry,
        make: Callable[[Model], Batching | None],
        has_left: Callable[[str, float], Awaitable[bool]],
    ) -> None:
        self.ended_jobs = 0
        self.ended_batches = 0
        self._registry = registry
        self._make = make
        self._has_left = has_left
        self._leaving_s: dict[str, float] = {}
        self._loops: dict[str, Batching] = {}
        self._stops: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.follow()

    @property
    def running(self) -> list[Batching]:
        """The loops of the models that are served."""
        return [loop for name, loop in self._loops.items() if name not in self._stops or not self._stops[name].is_set()]

    def follow(self) -> Mapping[str, Batching]:
        """Make loops for new rows, tell those of changed ones to end, forget those that have; returns all there are."""
        rows = self._registry.now.served
        for name, loop in list(self._loops.items()):
            stop = self._stops.get(name)
            # One that was told to end does so, even if its row is what it was again; then it gets a new one.
            if rows.get(name) == loop.model and not (stop and stop.is_set()):
                self._leaving_s.pop(name, None)
                continue
            if name not in rows and not (stop and stop.is_set()):
                self._leaving_s.setdefault(name, time.monotonic())
                continue  # `_let_go` ends it
            if stop:
                stop.set()
            task = self._tasks.get(name)
            if task is None or task.done():
                self.ended_jobs += loop.jobs_done
                self.ended_batches += loop.batches
                for table in (self._loops, self._stops, self._tasks, self._leaving_s):
                    table.pop(name, None)
        for name, model in rows.items():
            if name not in self._loops and (loop := self._make(model)) is not None:
                self._loops[name] = loop
        return self._loops

    async def _let_go(self) -> None:
        """Tell the loops of rows that have gone to end, once nothing more can come to them."""
        for name, since_s in self._leaving_s.items():
            for_s = time.monotonic() - since_s
            stop = self._stops.get(name)
            if stop and not stop.is_set() and for_s >= STAY_S and await self._has_left(name, for_s):
                stop.set()

    async def run(self, stop: asyncio.Event, drain_s: float) -> None:
        """Run all loops until `stop` is set, then end the batches in flight within `drain_s`."""
        stopped = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                await self._let_go()
                for name, loop in self.follow().items():
                    if name not in self._tasks:
                        log.info("model.served", model=name, triton_model=loop.model.triton_model)
                        self._stops[name] = asyncio.Event()
                        self._tasks[name] = asyncio.create_task(loop.run(self._stops[name], drain_s))
                await asyncio.wait({stopped, *self._tasks.values()}, timeout=FOLLOW_S, return_when=asyncio.FIRST_COMPLETED)
                for task in self._tasks.values():
                    if task.done():
                        task.result()  # a loop ends by itself only by an error, which ends the worker
        finally:
            stopped.cancel()
        for each in self._stops.values():
            each.set()
        await asyncio.gather(*self._tasks.values())

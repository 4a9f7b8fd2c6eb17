"""The batching loops of the models that the registry names at this moment.

A row that is new gets a loop; one that has gone or changed has its loop ended, which finishes what it has in hand, and a
changed one gets its new loop only then: both would sit on the same seat of the queue.
"""

import asyncio
from collections.abc import Callable, Mapping

import structlog

from inference_worker.batching import Batching
from shared.live_registry import LiveRegistry
from shared.models import Model

FOLLOW_S = 0.5
"""How often the registry is followed."""

log = structlog.get_logger()


class Loops:
    """A loop per model. `make` gives the loop of a model, or `None` if this worker does not run its track."""

    def __init__(self, registry: LiveRegistry, make: Callable[[Model], Batching | None]) -> None:
        self.ended_jobs = 0
        self.ended_batches = 0
        self._registry = registry
        self._make = make
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
        rows = self._registry.now.models
        for name, loop in list(self._loops.items()):
            stop = self._stops.get(name)
            # One that was told to end does so, even if its row is what it was again; then it gets a new one.
            if rows.get(name) == loop.model and not (stop and stop.is_set()):
                continue
            if stop:
                stop.set()
            task = self._tasks.get(name)
            if task is None or task.done():
                self.ended_jobs += loop.jobs_done
                self.ended_batches += loop.batches
                for table in (self._loops, self._stops, self._tasks):
                    table.pop(name, None)
        for name, model in rows.items():
            if name not in self._loops and (loop := self._make(model)) is not None:
                self._loops[name] = loop
        return self._loops

    async def run(self, stop: asyncio.Event, drain_s: float) -> None:
        """Run all loops until `stop` is set, then end the batches in flight within `drain_s`."""
        stopped = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
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

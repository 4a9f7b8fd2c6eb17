"""Keeps the models in Triton as the registry wants them, through Triton's model control.

    in the registry, not ready in Triton       load it; again after a pause that grows while it fails
    in the registry's list `unloaded`          unload it after a while, and not before what was accepted for it has ended
    not in the registry any more               the same

One that comes back within that while is simply kept.
Where model control is closed to us, or Triton polls its repository, nothing is done but to say what Triton says.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from inference_worker.triton import ModelState, Triton
from shared.errors import MeshError
from shared.live_registry import LiveRegistry
from shared.models import Registry

RETRY_LEAST_S, RETRY_MOST_S = 1.0, 30.0
LEAVE_S = 10.0
"""How long a model that is wanted no more stays loaded: gateways and other workers may not have seen it yet."""

log = structlog.get_logger()


class Control:
    """One inference worker's hand on Triton's models."""

    def __init__(self, triton: Triton, registry: LiveRegistry, has_left: Callable[[str, float], Awaitable[bool]]) -> None:
        """`has_left(model, for_s)` is `Store.has_left`."""
        self._triton = triton
        self._registry = registry
        self._has_left = has_left
        self._states: dict[str, ModelState] = {}
        self._said: dict[str, str] = {}
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._pauses_s: dict[str, float] = {}
        self._next_s: dict[str, float] = {}
        self._leaving_s: dict[str, float] = {}
        self._rows: dict[str, set[str]] = {}
        """Triton's name -> the rows that it serves or has served."""

    def status(self) -> dict[str, dict[str, Any]]:
        """What Triton says of each of the registry's models, by what they are `served_as`."""
        document: dict[str, dict[str, Any]] = {}
        for name, model in self._registry.now.served.items():
            if model.triton_model:
                state = self._states.get(model.triton_model, ModelState("UNKNOWN" if not self._states else "MISSING", ""))
                reason = self._said.get(model.triton_model) or state.reason
                said = "LOADING" if model.triton_model in self._busy and state.state != "READY" else state.state
                document[name] = {"model": model.triton_model, "state": said, "reason": reason}
        return document

    async def check(self) -> None:
        """Ask Triton what it has, and begin what is to be changed. Never raises."""
        try:
            self._states = await self._triton.index()
        except MeshError as error:
            log.debug("control.not_told", error=error.detail)
            self._states = {}
            return
        registry = self._registry.now
        wanted: set[str] = set()
        for name, model in registry.served.items():
            if model.triton_model:
                self._rows.setdefault(model.triton_model, set()).add(name)
                if model.name not in registry.unloaded:
                    wanted.add(model.triton_model)
        for name in wanted:
            if name in self._states and not self._is_ready(name):
                self._begin(name, self._triton.load_model, "load")
        await self._leave(registry, wanted)

    async def close(self) -> None:
        """Let go of what is under way; Triton goes on with it."""
        for task in self._busy.values():
            task.cancel()
        await asyncio.gather(*self._busy.values(), return_exceptions=True)

    async def _leave(self, registry: Registry, wanted: set[str]) -> None:
        now_s = time.monotonic()
        for name, rows in list(self._rows.items()):
            if name in wanted:
                self._leaving_s.pop(name, None)
                continue
            for_s = now_s - self._leaving_s.setdefault(name, now_s)
            if for_s < LEAVE_S:
                continue
            if not self._is_ready(name):
                if not rows & set(registry.served):
                    self._rows.pop(name)
                    self._leaving_s.pop(name)
            elif all([await self._has_left(row, for_s) for row in rows]):
                self._begin(name, self._triton.unload_model, "unload")

    def _is_ready(self, name: str) -> bool:
        return name in self._states and self._states[name].state == "READY"

    def _begin(self, name: str, change: Any, what: str) -> None:
        if name in self._busy or time.monotonic() < self._next_s.get(name, 0.0):
            return
        self._busy[name] = asyncio.create_task(self._change(name, change(name), what))

    async def _change(self, name: str, change: Awaitable[None], what: str) -> None:
        try:
            log.info("model.changing", change=what, triton_model=name)
            await change
        except MeshError as error:
            pause_s = self._pauses_s.get(name, RETRY_LEAST_S)
            self._pauses_s[name] = min(pause_s * 2, RETRY_MOST_S)
            self._next_s[name] = time.monotonic() + pause_s
            self._said[name] = error.detail
            log.warning("model.not_changed", change=what, triton_model=name, error=error.detail, retry_s=pause_s)
        else:
            for table in (self._pauses_s, self._next_s, self._said):
                table.pop(name, None)
        finally:
            self._busy.pop(name, None)

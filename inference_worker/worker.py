"""The inference worker: a batching loop for each model of the registry, over one runtime."""

import asyncio
import os
import secrets
import socket
from typing import Any

import structlog
from prometheus_client import REGISTRY

from inference_worker.batching import Batching
from inference_worker.control import Control
from inference_worker.encoded import EncodedTriton
from inference_worker.gpu import Gpus
from inference_worker.loops import Loops
from inference_worker.regions import Regions
from inference_worker.runtime import Runtime
from inference_worker.torch_runtime import TorchRuntime
from inference_worker.triton import Triton
from shared.exposition import exposed
from shared.heartbeat import beat_forever
from shared.live_registry import LiveRegistry
from shared.models import Model
from shared.settings import Settings
from shared.store import Store, connect
from shared.store.arena import Ownerless

log = structlog.get_logger()


class Worker:
    """One inference worker."""

    def __init__(
        self, settings: Settings, registry: LiveRegistry, store: Store, runtime: Triton, regions: Regions | None = None
    ) -> None:
        self._torch = TorchRuntime(settings.torch_device)
        self._regions = regions
        self._ownerless = Ownerless()
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self._settings = settings
        self._store = store
        self._registry = registry
        self._triton = runtime
        self._runtimes: dict[str, Runtime] = {"A": self._torch, "B": runtime, "C": runtime, "D": EncodedTriton(runtime)}
        """Track -> what runs it here."""
        self.gpus = Gpus()
        self._ready: list[str] = []
        self._control = Control(runtime, registry, store.has_left)
        self._loops = Loops(registry, self._loop, store.has_left)

    def _loop(self, model: Model) -> Batching | None:
        runtime = self._runtimes.get(model.track)
        if runtime is None:
            return None
        return Batching(
            self._store,
            runtime,
            model,
            worker=self.name,
            slots=self._settings.inference_slots,
            linger_ms=self._settings.inference_linger_ms,
        )

    def status(self) -> dict[str, Any]:
        """What the heartbeat tells of this worker."""
        loops = self._loops.running
        batches = self._loops.ended_batches + sum(loop.batches for loop in loops)
        jobs = self._loops.ended_jobs + sum(loop.jobs_done for loop in loops)
        return {
            "jobs_done": jobs,
            "last_error": self._registry.problem or next((loop.last_error for loop in loops if loop.last_error), None),
            "models": self._ready,
            "gpu": self.gpus.read(),
            "metrics_port": self._settings.metrics_port,
            "details": {
                "batches": batches,
                "mean_batch_size": round(jobs / batches, 2) if batches else None,
                "triton_models": self._control.status(),
                "triton_clients": self._triton.client_count,
                "tensor_store": "shm" if self._triton.sharing else "redis",
                "shm_probe": self._regions.probe.name if self._regions else None,
            },
        }

    async def watch_models(self) -> None:
        """Ask the runtimes which models are ready, as often as the heartbeat tells it. Runs for ever."""
        while True:
            await self.check_models()
            await asyncio.sleep(self._settings.heartbeat_s if self._ready else 0.2)

    async def check_models(self) -> None:
        """Ask once which models are ready, and whether Triton shares memory with us."""
        self._ownerless.sweep()
        self._store.tensors.forget_removed()
        await self._triton.probe()
        await self._control.check()
        loops = self._loops.running
        ready = await asyncio.gather(*(loop.is_ready() for loop in loops))
        names = [loop.model.served_as for loop, is_ready in zip(loops, ready, strict=True) if is_ready]
        if names != self._ready:
            log.info("models.ready", models=names)
        self._ready = names

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then end the batches in flight."""
        try:
            await self._loops.run(stop, self._settings.shutdown_s)
        finally:
            await self._control.close()
            await self._torch.close()


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Run an inference worker until `stop` is set.

    Raises:
        RegistryError: the models file is wrong.
    """
    registry = LiveRegistry(settings.models)
    async with connect(settings) as store:
        regions = _regions(settings, store)
        runtime = Triton(settings.triton_url, settings.triton_clients, regions, settings.triton_ca, settings.triton_control_key)
        worker = Worker(settings, registry, store, runtime, regions)
        REGISTRY.register(worker.gpus)
        await worker.check_models()  # so that the first heartbeat tells
        upkeep = [
            asyncio.create_task(worker.watch_models()),
            asyncio.create_task(store.sweep_forever()),
            asyncio.create_task(beat_forever(store, settings.heartbeat_s, "inference", worker.name, worker.status)),
        ]
        log.info("worker.ready", worker=worker.name, triton=settings.triton_url)
        try:
            async with exposed(settings, store.ready.is_set):
                await worker.run(stop)
        finally:
            for task in upkeep:
                task.cancel()
            await asyncio.gather(*upkeep, return_exceptions=True)
            await runtime.close()
            REGISTRY.unregister(worker.gpus)


def _regions(settings: Settings, store: Store) -> Regions | None:
    if settings.tensor_store == "redis":
        return None
    try:
        return Regions(store.tensors.arenas)
    except OSError as error:
        log.warning("regions.not_made", error=str(error))
        return None

"""The store as the services hold it: jobs, uploads, tensors, queues, events and heartbeats over one Redis."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager

import structlog

from shared.errors import StoreUnavailable
from shared.settings import Settings
from shared.store import keys, result_streams
from shared.store.admission import Admission
from shared.store.batches import Batches
from shared.store.budget import Budget, ByteBudget
from shared.store.claims import Claims
from shared.store.clock import Clock
from shared.store.connection import Connection
from shared.store.dead_letters import DeadLetters
from shared.store.depths import Depth, depths
from shared.store.endings import Endings
from shared.store.events import Events
from shared.store.heartbeats import Heartbeats
from shared.store.ids import Ids
from shared.store.jobs import Jobs
from shared.store.rates import Rates
from shared.store.renders import Renders
from shared.store.streams import Consumer
from shared.store.tensors import Tensors
from shared.store.upload_files import UploadFiles
from shared.store.uploads import Uploads
from shared.store.webhooks import Webhooks

RETRY_S = 0.5
CLOCK_REFRESH_S = 30.0
SWEEP_S = 2.0

log = structlog.get_logger()


class Store:
    """Made by `connect`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection = Connection(settings)
        self._ids = Ids(settings.partitions, lambda partition: self._connection.is_away(keys.live(partition)))
        self._budget = ByteBudget(self._connection, settings.byte_budget, settings.partitions)
        self.clock = Clock()
        self.ready = asyncio.Event()
        self.tensors = Tensors(self._connection)
        self.admission = Admission(self._connection, settings.partitions, settings.max_queue_s)
        self.rates = Rates(self._connection)
        self.heartbeats = Heartbeats(self._connection, self.clock, alive_s=settings.heartbeat_s * 3)
        self.upload_files = UploadFiles(settings.upload_folder)
        self.uploads = Uploads(
            self._connection, self._ids, self._budget, self.admission, self.heartbeats, self.upload_files,
            staging_s=settings.body_timeout_s, chunk_bytes=settings.upload_chunk_bytes,
        )  # fmt: skip
        self.jobs = Jobs(self._connection, settings, self._ids, self.clock, self._budget, self.admission, self.upload_files)
        self.claims = Claims(self._connection, settings, self.clock, self.tensors)
        self.endings = Endings(self._connection, settings, self.clock, self._budget, self.jobs, self.uploads, self.upload_files)
        self.batches = Batches(self._connection, settings, self.clock, self.jobs, self.endings)
        self.webhooks = Webhooks(self._connection, settings, self.jobs)
        self.renders = Renders(self._connection, settings.partitions, self.jobs, self.uploads)
        self.dead_letters = DeadLetters(self._connection, settings.partitions, self.jobs)
        self.events = Events(self._connection, self.jobs.read)

    @property
    def is_cluster(self) -> bool:
        """Whether this is a Redis Cluster; known once `ready` is set."""
        return self._connection.is_cluster

    async def ping(self) -> None:
        """Check that Redis answers.

        Raises:
            StoreUnavailable: it does not.
        """
        await self._connection.run_one("PING")

    def consumer(self, stage: str, name: str) -> Consumer:
        """A seat at a stage's queue: `preprocess` or `inference:MODEL`, or of a later version `inference:MODEL@VERSION`."""
        return Consumer(
            self._connection,
            self.claims,
            stage=stage,
            name=name,
            partitions=self._settings.partitions,
            lease_s=self._settings.lease_s,
        )

    async def depths(self, models: Iterable[str]) -> dict[str, Depth]:
        """The queues of all stages; of the models as they are `served_as`."""
        stages = ["preprocess", *(f"inference:{model}" for model in models)]
        return await depths(self._connection, self.clock, stages, self._settings.partitions, self._settings.lease_s)

    async def waiting_tensors(self, models: Iterable[str]) -> int:
        """How many decoded pictures of these models no inference worker has ended yet."""
        there = [
            partition for partition in range(self._settings.partitions) if not self._connection.is_away(keys.live(partition))
        ]
        queues = [keys.queue(partition, f"inference:{model}") for partition in there for model in models]
        return sum(await self._connection.run(*(("XLEN", queue) for queue in queues))) if queues else 0

    async def has_left(self, model: str, for_s: float) -> bool:
        """Whether all that was accepted for a model `for_s` ago or earlier has ended: its own queue is empty, and whatever
        waits for a decoder was accepted later. False while Redis does not answer."""
        try:
            found = await self.depths([model])
        except StoreUnavailable:
            return False
        own = found[f"inference:{model}"]
        return not own.waiting + own.in_progress and found["preprocess"].oldest_age_ms < for_s * 1000

    async def budget(self) -> Budget:
        """The byte budget over all partitions."""
        return await self._budget.read()

    async def keep_up(self) -> None:
        """Fetch what every process needs from Redis, waiting for it, and keep the clock in step. Runs for ever."""
        while True:
            try:
                await self._ids.load(self._connection)
                self.upload_files.open(self._ids.mesh)
                await result_streams.tell(self._connection, self._settings.partitions)
                await self.clock.refresh(self._connection)
                self.ready.set()
                await asyncio.sleep(CLOCK_REFRESH_S)
            except StoreUnavailable as error:
                log.warning("store.unavailable", error=error.detail)
                await asyncio.sleep(random.uniform(0, RETRY_S))  # noqa: S311 - jitter needs no secrecy

    async def sweep_forever(self) -> None:
        """End overdue jobs and drop abandoned uploads, every few seconds. Any number of processes may do it."""
        while True:
            await asyncio.sleep(SWEEP_S)
            for partition in range(self._settings.partitions):
                with contextlib.suppress(StoreUnavailable):
                    swept = await self.endings.sweep(partition)
                    if swept:
                        log.info("store.swept", partition=partition, jobs=swept)
            with contextlib.suppress(StoreUnavailable):
                if removed := await self.uploads.sweep():
                    log.info("uploads.swept", files=removed)

    async def close(self) -> None:
        """Close all connections."""
        await self.admission.close()
        await self._connection.close()


@asynccontextmanager
async def connect(settings: Settings, *, wait_s: float = 5.0) -> AsyncGenerator[Store]:
    """A store for this process. Waits up to `wait_s` for Redis' first answer, and goes on without: it may come later."""
    store = Store(settings)
    upkeep = asyncio.create_task(store.keep_up())
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await store.ready.wait()
        yield store
    finally:
        upkeep.cancel()
        await asyncio.gather(upkeep, return_exceptions=True)
        await store.close()

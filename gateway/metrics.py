"""The gateway's metrics: counted by its worker processes, told by the process that keeps them.

    worker process ──▶ files that outlive it ─┐
    Redis (depths, budget, workers) ──────────┴──▶ /metrics of the main process, on MESH_METRICS_PORT

prometheus_client's multiprocess mode keeps a file per worker process, so that a scrape finds all of them whichever answers
requests, and a recycled one leaves its counts behind. The files of the gone are folded into one, or they would add up for
as long as the gateway lives. What is true of the whole mesh is read from the store at the scrape: each gateway tells the
same, so take the maximum over gateways.
"""

import asyncio
import contextlib
import os
import tempfile
import threading
from collections.abc import Generator, Iterable
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

from shared.errors import MeshError
from shared.exposition import Answer, exposed
from shared.live_registry import LiveRegistry
from shared.models import Registry
from shared.settings import Settings
from shared.store import Store, connect

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
FOLDED_PID = "0"


@contextlib.contextmanager
def told(settings: Settings, registry: LiveRegistry) -> Generator[None]:
    """Tell the metrics of this gateway while the block lasts. Enter it before worker processes are made."""
    if not settings.metrics_port:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="visionmesh-metrics-") as folder:
        os.environ[FOLDER_VARIABLE] = folder  # its worker processes inherit it
        loop = asyncio.new_event_loop()
        stop = asyncio.Event()
        thread = threading.Thread(target=loop.run_until_complete, args=(_tell(settings, registry, Path(folder), stop),))
        thread.daemon = True
        thread.start()
        try:
            yield
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(timeout=2)


async def _tell(settings: Settings, models: LiveRegistry, folder: Path, stop: asyncio.Event) -> None:
    async with connect(settings) as store:

        async def metrics() -> Answer:
            fold(folder)
            registry = CollectorRegistry()
            MultiProcessCollector(registry, str(folder))
            registry.register(_Readings(await readings(store, models.now)))
            return 200, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(registry)

        async def targets() -> Answer:
            return 200, "application/json", msgspec.json.encode(await _targets(store))

        async with exposed(settings, store.ready.is_set, {"/metrics": metrics, "/targets": targets}):
            await stop.wait()


class _Readings:
    """Metrics that were read already, as prometheus_client wants them."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


async def readings(store: Store, models: Registry) -> list[Metric]:
    """What is true of the whole mesh now. `mesh_store_up` is 0, and the rest missing, while Redis is away."""
    up = GaugeMetricFamily("mesh_store_up", "Whether Redis answers")
    depth = GaugeMetricFamily("mesh_queue_depth", "Jobs in a stage's queue", labels=["stage", "state"])
    age = GaugeMetricFamily("mesh_queue_oldest_age_seconds", "Age of a queue's oldest job", labels=["stage"])
    overdue = GaugeMetricFamily("mesh_leases_overdue", "Jobs whose lease ended and that nobody took over", labels=["stage"])
    reserved = GaugeMetricFamily("mesh_in_flight_bytes", "Bytes reserved by work that was taken")
    limit = GaugeMetricFamily("mesh_byte_budget_bytes", "Bytes that may be reserved")
    workers = GaugeMetricFamily("mesh_workers", "Processes that live", labels=["kind"])
    ready = GaugeMetricFamily("mesh_model_ready", "Inference workers that can run a model now", labels=["model"])
    try:
        beats = await store.heartbeats.live()
        depths = await store.depths(models.served)
        budget = await store.budget()
    except MeshError:
        up.add_metric([], 0)
        return [up]
    up.add_metric([], 1)
    for stage, found in depths.items():
        depth.add_metric([stage, "waiting"], found.waiting)
        depth.add_metric([stage, "in_progress"], found.in_progress)
        age.add_metric([stage], found.oldest_age_ms / 1000)
        overdue.add_metric([stage], found.overdue_leases)
    reserved.add_metric([], budget.reserved_bytes)
    limit.add_metric([], budget.limit_bytes)
    for kind in ("gateway", "preprocess", "inference"):
        workers.add_metric([kind], sum(beat.kind == kind for beat in beats))
    for name, model in models.models.items():
        if name in models.unloaded:  # nobody is to be woken for what was asked for
            continue
        ready.add_metric([name], sum(beat.kind == "inference" and model.served_as in beat.models for beat in beats))
    return [up, depth, age, overdue, reserved, limit, workers, ready]


async def _targets(store: Store) -> list[dict[str, object]]:
    """Every process that tells metrics, for Prometheus' HTTP service discovery."""
    try:
        beats = await store.heartbeats.live()
    except MeshError:
        return []
    found = {(f"{beat.host}:{beat.metrics_port}", beat.kind) for beat in beats if beat.metrics_port}
    return [{"targets": [address], "labels": {"kind": kind}} for address, kind in sorted(found)]


def fold(folder: Path) -> None:
    """Add the counts of processes that are gone into one file each for counters and histograms, and forget their gauges."""
    for kind in ("counter", "histogram"):
        gone = [file for file in folder.glob(f"{kind}_*.db") if not _is_alive(file)]
        kept = folder / f"{kind}_{FOLDED_PID}.db"
        if not gone or gone == [kept]:
            continue
        merged = MultiProcessCollector.merge([str(file) for file in gone], accumulate=False)
        fresh = folder / f"{kind}.fresh"
        values = MmapedDict(str(fresh))
        for metric in merged:
            for sample in metric.samples:
                # As the worker processes spell it: a counter's metric has no `_total`.
                values.write_value(
                    mmap_key(metric.name, sample.name, list(sample.labels), list(sample.labels.values()), metric.documentation),
                    sample.value,
                    0.0,
                )
        values.close()
        fresh.replace(kept)
        for file in gone:
            if file != kept:
                file.unlink()
    for file in folder.glob("gauge_*.db"):
        if not _is_alive(file):
            file.unlink()


def _is_alive(file: Path) -> bool:
    pid = file.stem.rpartition("_")[2]
    return pid != FOLDED_PID and Path("/proc", pid).exists()

"""The GPUs of this machine as NVML sees them; `None` where there is no driver."""

from collections.abc import Iterable

import pynvml
import structlog
from prometheus_client.core import GaugeMetricFamily, Metric

from shared.messages import Gpu

log = structlog.get_logger()


class Gpus:
    """Readings of all GPUs. NVML is opened once, at the first reading."""

    def __init__(self) -> None:
        self._open: bool | None = None

    def read(self) -> list[Gpu] | None:
        """Name, memory and utilisation of each GPU, or `None`. Never raises."""
        if self._open is None:
            try:
                pynvml.nvmlInit()
                self._open = True
            except pynvml.NVMLError as error:
                log.info("gpu.none", reason=str(error))
                self._open = False
        if not self._open:
            return None
        try:
            return [_read(index) for index in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            log.warning("gpu.unreadable", error=str(error))
            return None

    def collect(self) -> Iterable[Metric]:
        """The same for Prometheus, read at the scrape; nothing where there is no GPU."""
        used = GaugeMetricFamily("mesh_gpu_memory_used_bytes", "GPU memory in use, by NVML", labels=["gpu", "name"])
        total = GaugeMetricFamily("mesh_gpu_memory_total_bytes", "GPU memory there is", labels=["gpu", "name"])
        busy = GaugeMetricFamily(
            "mesh_gpu_utilization_ratio", "Share of time in which the GPU was busy", labels=["gpu", "name"]
        )
        for index, gpu in enumerate(self.read() or ()):
            labels = [str(index), gpu.name]
            used.add_metric(labels, gpu.memory_used_bytes)
            total.add_metric(labels, gpu.memory_total_bytes)
            busy.add_metric(labels, gpu.utilization_percent / 100)
        return [used, total, busy]


def _read(index: int) -> Gpu:
    device = pynvml.nvmlDeviceGetHandleByIndex(index)
    name = pynvml.nvmlDeviceGetName(device)
    memory = pynvml.nvmlDeviceGetMemoryInfo(device)
    return Gpu(
        name=name.decode() if isinstance(name, bytes) else name,
        memory_used_bytes=int(memory.used),
        memory_total_bytes=int(memory.total),
        utilization_percent=int(pynvml.nvmlDeviceGetUtilizationRates(device).gpu),
    )

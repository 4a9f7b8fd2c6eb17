"""The GPUs of this machine as NVML sees them; `None` where there is no driver."""

import pynvml
import structlog

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

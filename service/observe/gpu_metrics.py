"""Utilisation, memory and power of the GPUs, read from NVIDIA's management library (NVML).

Each scrape reads them, which takes well under a millisecond a GPU. Every worker reads the same
values. Without the package `pynvml` these metrics are absent.
"""

import importlib
import logging
from collections.abc import Iterator
from typing import Any, Final

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

log = logging.getLogger(__name__)

MODULE: Final = "pynvml"
FAMILIES: Final = {
    "gpu_utilisation_ratio": "Share of the last moment in which the GPU computed.",
    "gpu_memory_used_bytes": "GPU memory in use, by all processes.",
    "gpu_power_watts": "Power that the GPU draws.",
}


class GpuCollector(Collector):
    """Collects utilisation, memory and power of every GPU. `nvml` is the module pynvml."""

    def __init__(self, nvml: Any) -> None:
        """Start NVML; raises nvml.NVMLError where there is no driver."""
        self._nvml = nvml
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
        self._gpus = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(count)]

    def collect(self) -> Iterator[Metric]:
        """Yield one family for each quantity, without the GPUs that do not report it."""
        nvml = self._nvml
        readers: dict[str, Any] = {
            "gpu_utilisation_ratio": lambda gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
            "gpu_memory_used_bytes": lambda gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
            "gpu_power_watts": lambda gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
        }
        for name, read in readers.items():
            family = GaugeMetricFamily(f"astrolabe_{name}", FAMILIES[name], labels=["gpu"])
            for number, gpu in enumerate(self._gpus):
                try:
                    family.add_metric([str(number)], read(gpu))
                except nvml.NVMLError as exc:
                    log.debug("GPU %d does not tell its %s: %s", number, name, exc)
            yield family


def open_gpu_metrics(device: str) -> GpuCollector | None:
    """A collector, or None where the encoder runs on the CPU or NVML is missing or fails."""
    if device == "cpu":
        return None
    try:
        nvml: Any = importlib.import_module(MODULE)
    except ModuleNotFoundError:
        log.info("no GPU metrics: install astrolabe[gpu-metrics] to have them")
        return None
    try:
        return GpuCollector(nvml)
    except nvml.NVMLError as exc:
        log.warning("no GPU metrics: %s", exc)
        return None

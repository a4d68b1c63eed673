import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest

from service.observe.gpu_metrics import open_gpu_metrics
from service.observe.telemetry import Telemetry


class FakeNvml(ModuleType):
    """Two GPUs; the second does not tell its power."""

    NVMLError = type("NVMLError", (Exception,), {})

    def __init__(self, broken: bool = False) -> None:
        super().__init__("pynvml")
        self.broken = broken

    def nvmlInit(self) -> None:
        if self.broken:
            raise self.NVMLError("no driver")

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        return number

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> SimpleNamespace:
        return SimpleNamespace(gpu=25 + gpu)

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> SimpleNamespace:
        return SimpleNamespace(used=1000 + gpu)

    def nvmlDeviceGetPowerUsage(self, gpu: int) -> int:
        if gpu:
            raise self.NVMLError("not supported")
        return 70_000


def test_a_gpu_in_use_is_measured_at_every_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    collector = open_gpu_metrics("cuda")
    assert collector is not None
    telemetry = Telemetry()
    telemetry.add_collector(collector)
    lines = telemetry.render().decode().splitlines()
    shown = [line for line in lines if line.startswith("astrolabe_gpu")]
    assert shown == [
        'astrolabe_gpu_utilisation_ratio{gpu="0"} 0.25',
        'astrolabe_gpu_utilisation_ratio{gpu="1"} 0.26',
        'astrolabe_gpu_memory_used_bytes{gpu="0"} 1000.0',
        'astrolabe_gpu_memory_used_bytes{gpu="1"} 1001.0',
        'astrolabe_gpu_power_watts{gpu="0"} 70.0',
    ]


def test_no_gpu_in_use_no_package_or_no_driver_means_no_metrics(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(broken=True))
    assert open_gpu_metrics("cpu") is None
    assert open_gpu_metrics("cuda") is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_gpu_metrics("cuda") is None
    assert [record.getMessage() for record in caplog.records] == [
        "no GPU metrics: no driver",
        "no GPU metrics: install astrolabe[gpu-metrics] to have them",
    ]

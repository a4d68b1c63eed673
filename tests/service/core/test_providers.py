import pytest

from service.core.providers import active_device, candidate_providers
from service.errors import DeviceUnavailable

CPU, CUDA, TRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


@pytest.mark.parametrize(
    ("device", "available", "candidates"),
    [
        ("auto", [CPU], [[CPU]]),
        ("auto", [CUDA, CPU], [[CUDA, CPU], [CPU]]),
        ("cpu", [CUDA, CPU], [[CPU]]),
        ("cuda", [CUDA, CPU], [[CUDA, CPU]]),
        ("tensorrt", [TRT, CUDA, CPU], [[TRT, CUDA, CPU]]),
    ],
)
def test_only_auto_has_something_to_fall_back_to(
    device: str, available: list[str], candidates: list[list[str]]
) -> None:
    assert candidate_providers(device, available) == candidates


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_gpu_asked_for_on_a_cpu_only_build_is_refused(device: str) -> None:
    with pytest.raises(DeviceUnavailable, match=rf"{device} was asked for.*cpu or auto"):
        candidate_providers(device, [CPU])


@pytest.mark.parametrize(
    ("providers", "device"), [([CPU], "cpu"), ([CUDA, CPU], "cuda"), ([TRT, CUDA, CPU], "tensorrt")]
)
def test_active_device_is_the_best_one_in_use(providers: list[str], device: str) -> None:
    assert active_device(providers) == device

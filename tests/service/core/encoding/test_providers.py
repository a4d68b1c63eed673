from pathlib import Path

import onnxruntime
import pytest

from service.core.encoding.providers import (
    GpuOptions,
    active_device,
    candidate_providers,
    cuda_options,
    tensorrt_options,
)
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
    found = candidate_providers(device, available, GpuOptions())
    assert [[name for name, _ in providers] for providers in found] == candidates


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_gpu_asked_for_on_a_cpu_only_build_is_refused(device: str) -> None:
    with pytest.raises(DeviceUnavailable, match=rf"{device} was asked for.*cpu or auto"):
        candidate_providers(device, [CPU], GpuOptions())


@pytest.mark.parametrize(
    ("providers", "device"), [([CPU], "cpu"), ([CUDA, CPU], "cuda"), ([TRT, CUDA, CPU], "tensorrt")]
)
def test_active_device_is_the_best_one_in_use(providers: list[str], device: str) -> None:
    assert active_device(providers) == device


def test_each_provider_gets_its_own_options_and_the_cpu_none() -> None:
    options = GpuOptions(device_id=3, max_rows=4, max_tokens=16)
    [[trt, cuda, cpu]] = candidate_providers("tensorrt", [TRT, CUDA, CPU], options, ["ids", "mask"])
    assert trt == (TRT, tensorrt_options(options, ["ids", "mask"]))
    assert cuda == (CUDA, cuda_options(options))
    assert cpu == (CPU, {})


def test_cuda_takes_what_is_needed_and_no_more_unless_told() -> None:
    assert cuda_options(GpuOptions()) == {
        "device_id": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
    }
    told = cuda_options(GpuOptions(device_id=1, memory_mb=2048, graphs=True))
    assert told["device_id"] == "1"
    assert told["gpu_mem_limit"] == str(2048 << 20)
    assert told["enable_cuda_graph"] == "1"


def test_tensorrt_builds_one_engine_for_all_buckets() -> None:
    options = GpuOptions(max_rows=64, max_tokens=128)
    found = tensorrt_options(options, ["input_ids", "attention_mask"])
    assert found == {
        "device_id": "0",
        "trt_profile_min_shapes": "input_ids:1x8,attention_mask:1x8",
        "trt_profile_opt_shapes": "input_ids:8x32,attention_mask:8x32",
        "trt_profile_max_shapes": "input_ids:64x128,attention_mask:64x128",
    }


def test_tensorrt_halves_caches_and_limits_where_told() -> None:
    options = GpuOptions(half=True, memory_mb=1024, engine_cache=Path("/cache/b/fp16"))
    found = tensorrt_options(options, ["x"])
    assert found["trt_fp16_enable"] == found["trt_layer_norm_fp32_fallback"] == "1"
    assert found["trt_max_workspace_size"] == str(512 << 20)
    assert found["trt_engine_cache_enable"] == found["trt_timing_cache_enable"] == "1"
    assert found["trt_engine_cache_path"] == found["trt_timing_cache_path"] == "/cache/b/fp16"
    assert "trt_cuda_graph_enable" not in tensorrt_options(GpuOptions(graphs=True), ["x"])


@pytest.mark.gpu
def test_every_option_is_one_that_the_installed_library_knows() -> None:
    libraries = Path(onnxruntime.__file__).parent / "capi"
    options = GpuOptions(half=True, memory_mb=64, graphs=True, engine_cache=Path("/c"))
    for name, spelled in (
        ("cuda", [*cuda_options(options), "kSameAsRequested", "HEURISTIC"]),
        ("tensorrt", list(tensorrt_options(options, ["x"]))),
    ):
        library = libraries / f"libonnxruntime_providers_{name}.so"
        if not library.exists():
            pytest.skip(f"this build of ONNX Runtime has no {name} provider")
        code = library.read_bytes()
        for word in spelled:
            assert b"\0" + word.encode() + b"\0" in code, word

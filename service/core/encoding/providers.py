"""Which ONNX Runtime execution providers a device setting means, asked for and then checked.

`cuda` and `tensorrt` never fall back: a service that was bought a GPU and runs on the CPU without a
word is the failure this file exists to prevent. `auto` may fall back, and its caller says so aloud.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from service.core.encoding.buckets import Bucket, Buckets, powers_of_two
from service.errors import DeviceUnavailable

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"

Provider: TypeAlias = tuple[str, dict[str, str]]

_PROVIDERS: Final[dict[str, list[str]]] = {
    "cpu": [CPU],
    "cuda": [CUDA, CPU],
    "tensorrt": [TENSORRT, CUDA, CPU],
}
_MB: Final = 1 << 20
_WORKSPACE_SHARE: Final = 2
"""TensorRT's workspace may take one part in so many of the memory allowed."""


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """How a GPU is used. `half`: the encoder is its fp16 variant.

    `engine_cache` is a folder of this bundle alone, None for no cache; `memory_mb` None is all.
    """

    device_id: int = 0
    memory_mb: int | None = None
    half: bool = False
    graphs: bool = False
    engine_cache: Path | None = None
    max_rows: int = 64
    max_tokens: int = 512

    @property
    def buckets(self) -> Buckets:
        """The shapes that the GPU is given."""
        return powers_of_two(self.max_rows, self.max_tokens)


def candidate_providers(
    device: str, available: Sequence[str], options: GpuOptions, inputs: Sequence[str] = ()
) -> list[list[Provider]]:
    """Provider lists to try, in order. Raises DeviceUnavailable if this build has no such provider.

    `inputs` names the graph's inputs, which TensorRT is told the shapes of.

    >>> lists = candidate_providers("auto", [CUDA, CPU], GpuOptions())
    >>> [[name for name, _ in providers] for providers in lists]
    [['CUDAExecutionProvider', 'CPUExecutionProvider'], ['CPUExecutionProvider']]
    """
    if device == "auto":
        tried = [_PROVIDERS["cuda"]] if CUDA in available else []
        tried.append(_PROVIDERS["cpu"])
    elif _PROVIDERS[device][0] in available:
        tried = [_PROVIDERS[device]]
    else:
        raise DeviceUnavailable(
            f"device {device} was asked for, but this ONNX Runtime has only "
            f"{', '.join(available)}: install onnxruntime-gpu, "
            "or set ASTROLABE_DEVICE to cpu or auto"
        )
    return [[(name, _options(name, options, inputs)) for name in names] for names in tried]


def cuda_options(options: GpuOptions) -> dict[str, str]:
    """Options of the CUDA provider, as ONNX Runtime spells them.

    From its page on the CUDA execution provider (onnxruntime.ai/docs/execution-providers) and
    onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc:
    `device_id`; `gpu_mem_limit` in bytes, of the provider's arena alone; `arena_extend_strategy`,
    kSameAsRequested because few shapes ask for few sizes, and doubling would run into the limit;
    `cudnn_conv_algo_search`, HEURISTIC because an exhaustive search pays where convolutions are;
    `use_tf32`, 0 so that fp32 means fp32 (fp16 does not use it); `enable_cuda_graph`.
    `prefer_nhwc` is left alone: it lays out images, and an encoder of texts has none.
    """
    found = {
        "device_id": str(options.device_id),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
    }
    if options.memory_mb is not None:
        found["gpu_mem_limit"] = str(options.memory_mb * _MB)
    if options.graphs:
        found["enable_cuda_graph"] = "1"
    return found


def tensorrt_options(options: GpuOptions, inputs: Sequence[str]) -> dict[str, str]:
    """Options of the TensorRT provider, as ONNX Runtime spells them.

    From its page on the TensorRT execution provider: `device_id`; `trt_fp16_enable`, and with it
    `trt_layer_norm_fp32_fallback`, whose squares overflow in half precision;
    `trt_max_workspace_size` in bytes; `trt_engine_cache_enable`, `trt_engine_cache_path`,
    `trt_timing_cache_enable`, `trt_timing_cache_path`; and `trt_profile_min_shapes`, `..opt..`,
    `..max..`, each as `input:2x8,input:2x8`, so that one engine is built for all buckets.
    `trt_cuda_graph_enable` records one graph for a session, whose shapes may then never change: it
    does not go with buckets and is left off.
    """
    found = {"device_id": str(options.device_id)}
    if options.half:
        found |= {"trt_fp16_enable": "1", "trt_layer_norm_fp32_fallback": "1"}
    if options.memory_mb is not None:
        found["trt_max_workspace_size"] = str(options.memory_mb * _MB // _WORKSPACE_SHARE)
    if options.engine_cache is not None:
        folder = str(options.engine_cache)
        found |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": folder}
        found |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": folder}
    buckets = options.buckets
    middle = Bucket(
        buckets.rows[len(buckets.rows) // 2], buckets.lengths[len(buckets.lengths) // 2]
    )
    smallest = Bucket(buckets.rows[0], buckets.lengths[0])
    for name, (rows, length) in zip(
        ("min", "opt", "max"), (smallest, middle, buckets.largest), strict=True
    ):
        shapes = ",".join(f"{entry}:{rows}x{length}" for entry in inputs)
        found[f"trt_profile_{name}_shapes"] = shapes
    return found


def active_device(providers: Sequence[str]) -> str:
    """Name of the device a session really uses, from the providers it reports."""
    for device in ("tensorrt", "cuda"):
        if _PROVIDERS[device][0] in providers:
            return device
    return "cpu"


def _options(provider: str, options: GpuOptions, inputs: Sequence[str]) -> dict[str, str]:
    if provider == CUDA:
        return cuda_options(options)
    return tensorrt_options(options, inputs) if provider == TENSORRT else {}

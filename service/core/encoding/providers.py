"""Maps a device setting to ONNX Runtime's execution providers and their options.

`cuda` and `tensorrt` never fall back: a service with a GPU must not run on the CPU unnoticed.
`auto` may fall back, and `service.core.encoding.encoder` logs it.
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
"""TensorRT's workspace may take one half of the memory allowed. A choice: the rest is for weights
and activations."""


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """How the encoder uses a GPU.

    `memory_mb` limits its memory; None means no limit. `half` says that the encoder is the fp16
    variant, `graphs` that runs use CUDA graphs. `engine_cache` is a folder for TensorRT's engines
    of this bundle alone; None means no cache. `max_rows` and `max_tokens` bound one run.
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
        """The shapes of batches on the GPU."""
        return powers_of_two(self.max_rows, self.max_tokens)


def candidate_providers(
    device: str, available: Sequence[str], options: GpuOptions, inputs: Sequence[str] = ()
) -> list[list[Provider]]:
    """Provider lists to try, in order; raises DeviceUnavailable if this build lacks the provider.

    `inputs` are the names of the graph's inputs, whose shapes TensorRT needs.

    >>> lists = candidate_providers("auto", [CUDA, CPU], GpuOptions())
    >>> [[name for name, _ in providers] for providers in lists]
    [['CUDAExecutionProvider', 'CPUExecutionProvider'], ['CPUExecutionProvider']]
    """
    if device == "auto":
        candidates = [_PROVIDERS["cuda"]] if CUDA in available else []
        candidates.append(_PROVIDERS["cpu"])
    elif _PROVIDERS[device][0] in available:
        candidates = [_PROVIDERS[device]]
    else:
        raise DeviceUnavailable(
            f"device {device} was asked for, but this ONNX Runtime has only "
            f"{', '.join(available)}: install onnxruntime-gpu, "
            "or set ASTROLABE_DEVICE to cpu or auto"
        )
    return [[(name, _options(name, options, inputs)) for name in names] for names in candidates]


def cuda_options(options: GpuOptions) -> dict[str, str]:
    """Options of the CUDA provider, as ONNX Runtime spells them.

    From its page on the CUDA execution provider (onnxruntime.ai/docs/execution-providers) and
    onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc:
    `device_id`; `gpu_mem_limit` in bytes, of the provider's arena alone; `arena_extend_strategy`,
    kSameAsRequested because few shapes ask for few sizes, and doubling would run into the limit;
    `cudnn_conv_algo_search`, HEURISTIC because an exhaustive search pays only with convolutions;
    `use_tf32`, 0 so that fp32 means fp32 (fp16 does not use it); `enable_cuda_graph`.
    `prefer_nhwc` stays unset: it is a layout for images, and a text encoder has none.
    """
    provider_options = {
        "device_id": str(options.device_id),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
    }
    if options.memory_mb is not None:
        provider_options["gpu_mem_limit"] = str(options.memory_mb * _MB)
    if options.graphs:
        provider_options["enable_cuda_graph"] = "1"
    return provider_options


def tensorrt_options(options: GpuOptions, inputs: Sequence[str]) -> dict[str, str]:
    """Options of the TensorRT provider, as ONNX Runtime spells them.

    From its page on the TensorRT execution provider: `device_id`; `trt_fp16_enable`, and with it
    `trt_layer_norm_fp32_fallback`, whose squares overflow in half precision;
    `trt_max_workspace_size` in bytes; `trt_engine_cache_enable`, `trt_engine_cache_path`,
    `trt_timing_cache_enable`, `trt_timing_cache_path`; and `trt_profile_min_shapes`, `..opt..`,
    `..max..`, each as `input:2x8,input:2x8`, so that one engine is built for all buckets.
    `trt_cuda_graph_enable` stays unset: it records one graph for a session, whose shapes may then
    never change, and a session here sees many buckets.
    """
    provider_options = {"device_id": str(options.device_id)}
    if options.half:
        provider_options |= {"trt_fp16_enable": "1", "trt_layer_norm_fp32_fallback": "1"}
    if options.memory_mb is not None:
        provider_options["trt_max_workspace_size"] = str(
            options.memory_mb * _MB // _WORKSPACE_SHARE
        )
    if options.engine_cache is not None:
        folder = str(options.engine_cache)
        provider_options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": folder}
        provider_options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": folder}
    buckets = options.buckets
    middle = Bucket(
        buckets.rows[len(buckets.rows) // 2], buckets.lengths[len(buckets.lengths) // 2]
    )
    smallest = Bucket(buckets.rows[0], buckets.lengths[0])
    for name, (rows, length) in zip(
        ("min", "opt", "max"), (smallest, middle, buckets.largest), strict=True
    ):
        shapes = ",".join(f"{entry}:{rows}x{length}" for entry in inputs)
        provider_options[f"trt_profile_{name}_shapes"] = shapes
    return provider_options


def active_device(providers: Sequence[str]) -> str:
    """The device that a session really uses, by the providers that it reports."""
    for device in ("tensorrt", "cuda"):
        if _PROVIDERS[device][0] in providers:
            return device
    return "cpu"


def _options(provider: str, options: GpuOptions, inputs: Sequence[str]) -> dict[str, str]:
    if provider == CUDA:
        return cuda_options(options)
    return tensorrt_options(options, inputs) if provider == TENSORRT else {}

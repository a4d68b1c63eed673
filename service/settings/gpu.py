"""Settings of a GPU, as a base class of `service.settings.settings.Settings`."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings


class GpuSettings(BaseSettings):
    """Which GPU the encoder uses, and how. On the CPU these settings have no effect."""

    gpu_device_id: int = Field(0, ge=0, le=255, description="Number of the GPU, in CUDA's count.")
    gpu_memory_mb: int | None = Field(
        None,
        ge=64,
        description="Most GPU memory, in MB, that the encoder's arena may take; CUDA itself takes "
        "a few hundred MB more. Not set: no limit.",
    )
    gpu_max_rows: int = Field(
        64,
        ge=1,
        le=4096,
        description="Most texts in one run on the GPU; a larger batch goes in parts. Runs are "
        "padded to powers of two in texts and in tokens; the service warms up each shape at start.",
    )
    cuda_graphs: bool = Field(
        False,
        description="Record the encoder's kernels once for each shape and launch them as one. "
        "Needs device `cuda`, and an encoder all of whose operators run there.",
    )
    tensorrt_cache: Path | None = Field(
        None,
        description="Folder that keeps TensorRT's engines of each bundle between starts. Engines "
        "are code for the GPU: let nobody else write there.",
    )

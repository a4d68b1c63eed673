"""Settings of a GPU. A base of `service.settings.Settings`, which everything else reads."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings


class GpuSettings(BaseSettings):
    """Which GPU, how much of it, and how it is used. Without one they mean nothing."""

    gpu_device_id: int = Field(0, ge=0, le=255, description="Number of the GPU, as CUDA counts.")
    gpu_memory_mb: int | None = Field(
        None,
        ge=64,
        description="Most memory in MB that the encoder's arena takes of the GPU; CUDA itself "
        "takes a few hundred more. Not set, all there is.",
    )
    gpu_max_rows: int = Field(
        64,
        ge=1,
        le=4096,
        description="Most texts that the GPU is given at once; a batch of more goes in parts. "
        "Batches are padded to powers of two of texts and tokens, each warmed up at start.",
    )
    cuda_graphs: bool = Field(
        False,
        description="Record the encoder's kernels once for each shape and launch them as one. "
        "Needs device `cuda`, and an encoder that runs there whole.",
    )
    tensorrt_cache: Path | None = Field(
        None,
        description="Folder that keeps TensorRT's engines between starts, by bundle. They are "
        "code for the GPU: nobody else may write there.",
    )

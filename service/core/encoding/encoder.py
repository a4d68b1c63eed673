"""Turns token ids into embeddings: the Encoder interface, and its implementation by ONNX Runtime.

All lanes share one session and so one copy of the weights: `InferenceSession.run` is thread-safe,
and with `intra_op_threads` 1 it computes on the calling thread (docs/decisions/0002). On a GPU
batches go through buffers of few shapes (`service.core.encoding.bound_runs`).
"""

import importlib.util
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from service.bundle.manifest import Manifest
from service.core.encoding.bound_runs import BoundRuns, Place
from service.core.encoding.onnx_check import check_onnx
from service.core.encoding.providers import CPU, GpuOptions, active_device, candidate_providers
from service.core.types import Float32Rows, TokenBatch
from service.errors import BundleMismatch, DeviceUnavailable, ManifestInvalid, VariantMissing

if TYPE_CHECKING:
    import onnxruntime as ort

log = logging.getLogger(__name__)

INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
DEFAULT_GPU: Final = GpuOptions()


class Encoder(Protocol):
    """Turns token ids into embeddings. It blocks; lanes call it from many threads at once."""

    dim: int
    device: str

    def encode(self, batch: TokenBatch) -> Float32Rows:
        """Embeddings (n, dim) float32, row i for text i."""
        ...


class OnnxEncoder:
    """Runs an ONNX graph from `input_ids` and `attention_mask`, both (n, length), to (n, dim)."""

    def __init__(
        self,
        path: Path,
        device: str = "auto",
        intra_op_threads: int = 1,
        gpu: GpuOptions = DEFAULT_GPU,
    ) -> None:
        """Open the session and, on a GPU, warm up every bucket.

        Raises DeviceUnavailable, BundleMismatch, ManifestInvalid.
        """
        check_onnx(path)
        self._session = open_session(path, device, intra_op_threads, gpu)
        self.device = active_device(self._session.get_providers())
        inputs = sorted(entry.name for entry in self._session.get_inputs())
        if inputs != [ATTENTION_MASK, INPUT_IDS]:
            raise BundleMismatch(
                f"{path} has inputs {inputs}, expected {ATTENTION_MASK} and {INPUT_IDS}"
            )
        output = self._session.get_outputs()[0]
        if len(output.shape) != 2 or not isinstance(output.shape[1], int):
            raise BundleMismatch(f"{path} has output shape {output.shape}, expected (n, dim)")
        self._output = output.name
        self.dim = int(output.shape[1])
        self._bound = None if self.device == "cpu" else self._bind(gpu)

    def _bind(self, gpu: GpuOptions) -> BoundRuns:
        names = (INPUT_IDS, ATTENTION_MASK, self._output)
        place = Place("cuda", gpu.device_id)
        graphs = gpu.graphs and self.device == "cuda"
        bound = BoundRuns(self._session, names, self.dim, gpu.buckets, place, graphs=graphs)
        try:
            bound.warm_up()
        except Exception as exc:  # ONNX Runtime's exceptions share no public base class
            raise DeviceUnavailable(
                f"{self.device} opened the encoder but cannot run it: {exc}: see docs/gpu.md"
            ) from exc
        return bound

    def encode(self, batch: TokenBatch) -> Float32Rows:
        """Embed a batch; raises RuntimeError for a wrong shape or values that are not finite.

        Errors of ONNX Runtime pass through.
        """
        if self._bound is not None:
            rows = self._bound.encode(batch.ids, batch.mask)
        else:
            feeds: dict[str, Any] = {INPUT_IDS: batch.ids, ATTENTION_MASK: batch.mask}
            rows = self._session.run([self._output], feeds)[0]
        if rows.shape != (len(batch.ids), self.dim) or not np.isfinite(rows).all():
            raise RuntimeError(f"the encoder gave {rows.shape} or values that are not finite")
        return rows


def open_encoder(
    folder: Path,
    manifest: Manifest,
    variant: str,
    device: str,
    threads: int,
    gpu: GpuOptions = DEFAULT_GPU,
) -> OnnxEncoder:
    """Open a bundle's encoder in the precision `variant`.

    Raises VariantMissing, BundleMismatch, DeviceUnavailable, ManifestInvalid.
    """
    spec = manifest.encoder
    if variant not in spec.variants:
        raise VariantMissing(
            f"encoder variant {variant} was asked for, {folder} has {', '.join(spec.variants)}: "
            "name one of these, or none for the bundle's own choice"
        )
    path = folder / spec.variants[variant]
    cache = gpu.engine_cache
    gpu = replace(
        gpu,
        half=variant == "fp16",
        max_tokens=manifest.tokenizer.max_tokens,
        # A TensorRT engine fits one graph only, and TensorRT does not check which.
        engine_cache=cache / manifest.bundle_id / variant if cache else None,
    )
    encoder = OnnxEncoder(path, device, threads, gpu)
    if encoder.dim != spec.dim:
        raise BundleMismatch(
            f"{path} gives vectors of {encoder.dim}, the manifest says encoder.dim {spec.dim}"
        )
    return encoder


def open_session(
    graph: Path | bytes, device: str, threads: int, gpu: GpuOptions = DEFAULT_GPU
) -> "ort.InferenceSession":
    """Open a graph, a file or its bytes, in ONNX Runtime.

    Raises DeviceUnavailable, ManifestInvalid.
    """
    # Since 1.29 ONNX Runtime reports usage to its maker, unless this is set before the import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as ort

    if device != "cpu" and importlib.util.find_spec("nvidia") is not None:
        ort.preload_dlls()  # the loader does not search for CUDA libraries installed by pip
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin take CPU time from the event loop and the index.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Otherwise a file's name or first bytes could make ONNX Runtime read it as its own format,
    # which `check_onnx` has not checked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.log_severity_level = 3
    if gpu.engine_cache is not None:
        gpu.engine_cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    inputs = (INPUT_IDS, ATTENTION_MASK)
    # With `auto` a machine without a GPU is no reason for a warning.
    level = logging.INFO if device == "auto" else logging.WARNING
    candidates = candidate_providers(device, ort.get_available_providers(), gpu, inputs)
    if device == "auto":
        # Without CUDA the library writes its own lines to stderr, past our logs. With `auto` we
        # log the fallback below instead; with `cuda` or `tensorrt` its lines stay.
        ort.set_default_logger_severity(4)
    for providers in candidates:
        try:
            # The library's own fallback would try the CPU and print that to standard output.
            session = ort.InferenceSession(graph, options, providers=providers, enable_fallback=0)
        except Exception as exc:  # ONNX Runtime's exceptions share no public base class
            if providers[0][0] == CPU:
                raise ManifestInvalid(
                    f"{graph!s:.1000} is not a graph ONNX Runtime can open: {exc}"
                ) from exc
            log.log(level, "provider %s failed: %s", providers[0][0], exc)
            continue
        if session.get_providers()[0] == providers[0][0]:
            return session
        # If CUDA cannot start, ONNX Runtime falls back without a word: log it.
        log.log(level, "asked for %s, got %s", providers[0][0], session.get_providers()[0])
    raise DeviceUnavailable(
        f"device {device} was asked for, but ONNX Runtime could not start {candidates[0][0][0]} "
        "here: check the driver and the CUDA libraries, or set "
        "ASTROLABE_DEVICE to cpu or auto (docs/gpu.md)"
    )

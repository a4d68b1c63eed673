"""BoundRuns: runs an encoder on a GPU through fixed buffers.

Each bucket has buffers on the device for both inputs and the output, which are bound to the session
once (ONNX Runtime's IO binding). A run copies its padded batch into them, computes, and copies the
rows back; it allocates no device memory. Free buffers lie in a pool. A lane that finds none makes
its own, so lanes never wait for each other.

With CUDA graphs ONNX Runtime records a bucket's kernels once and launches them as one. A recorded
graph belongs to the thread that recorded it, and two threads must not launch it at once. All runs
then go to one separate thread (docs/decisions/0019).
"""

import logging
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from service.core.encoding.buckets import Bucket, Buckets, empty_inputs, fill
from service.core.types import Float32Rows, Int64Rows

if TYPE_CHECKING:
    import onnxruntime as ort

log = logging.getLogger(__name__)
Result = TypeVar("Result")

GRAPH_ID: Final = "gpu_graph_id"
"""ONNX Runtime's run option for the number of a recorded graph; it uses 0 itself."""
WARM_UP_RUNS: Final = 2
"""The first run reserves memory and records a graph, the second runs as a request would."""


@dataclass(frozen=True, slots=True)
class Place:
    """The device of the buffers, as ONNX Runtime names it: `cpu` or `cuda`, and its number."""

    kind: str
    device_id: int = 0


@dataclass(slots=True)
class _Buffers:
    ids: Int64Rows
    mask: Int64Rows
    device_ids: Any
    device_mask: Any
    device_rows: Any
    binding: Any
    options: Any


class OneThread:
    """Runs calls from any thread one after the other on one thread.

    That thread is a daemon, unlike an executor's: a run that hangs must not keep the process alive.
    """

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def call(self, compute: Callable[[], Result]) -> Result:
        """Run `compute` on the thread and wait; returns or raises what it does."""
        future: Future[Result] = Future()
        self._calls.put((compute, future))
        return future.result()

    def stop(self) -> None:
        """End the thread after the calls that wait already."""
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            compute, future = call
            try:
                future.set_result(compute())
            except BaseException as exc:  # the caller must get every error
                future.set_exception(exc)
            # Drop the references: the last call would hold the session until the next one.
            del call, compute, future


class BoundRuns:
    """Runs batches through one session. Many threads may call it at once."""

    def __init__(
        self,
        session: "ort.InferenceSession",
        names: tuple[str, str, str],
        dim: int,
        buckets: Buckets,
        place: Place,
        *,
        graphs: bool = False,
    ) -> None:
        """`names` are the graph's names of the ids, the mask and the output."""
        self._session, self._names, self._dim = session, names, dim
        self._buckets, self._place = buckets, place
        self._free: dict[Bucket, list[_Buffers]] = {bucket: [] for bucket in buckets}
        self._graph_ids = {bucket: i for i, bucket in enumerate(buckets, 1)} if graphs else {}
        self._thread = OneThread("cuda-graphs") if graphs else None
        if self._thread is not None:  # ends with this object, to release a closed bundle's memory
            weakref.finalize(self, self._thread.stop)

    def encode(self, ids: Int64Rows, mask: Int64Rows) -> Float32Rows:
        """Encode token ids and mask (n, length) to rows (n, dim).

        Raises ValueError for texts longer than the largest bucket, and any error of ONNX Runtime.
        """
        if self._thread is not None:
            return self._thread.call(lambda: self._encode(ids, mask))
        return self._encode(ids, mask)

    def warm_up(self) -> dict[Bucket, float]:
        """Run every bucket, which also records its graph; returns the seconds of each."""
        seconds = {}
        for bucket in self._buckets:
            start_s = time.perf_counter()
            ids, mask = empty_inputs(bucket)
            mask[:] = 1
            for _ in range(WARM_UP_RUNS):
                self.encode(ids, mask)
            seconds[bucket] = time.perf_counter() - start_s
            log.info(
                "warmed up",
                extra={"fields": {"bucket": list(bucket), "seconds": round(seconds[bucket], 4)}},
            )
        return seconds

    def _encode(self, ids: Int64Rows, mask: Int64Rows) -> Float32Rows:
        rows = np.empty((len(ids), self._dim), np.float32)
        for part in self._buckets.runs(len(ids)):
            rows[part] = self._run(ids[part], mask[part])
        return rows

    def _run(self, ids: Int64Rows, mask: Int64Rows) -> Float32Rows:
        bucket = self._buckets.fitting(*ids.shape)
        free = self._free[bucket]
        try:
            buffers = free.pop()  # atomic in CPython, so it needs no lock
        except IndexError:
            buffers = self._make(bucket)
        fill(ids, mask, buffers.ids, buffers.mask)
        buffers.device_ids.update_inplace(buffers.ids)
        buffers.device_mask.update_inplace(buffers.mask)
        self._session.run_with_iobinding(buffers.binding, buffers.options)
        # Copy, because on a CPU `numpy()` returns the buffer itself.
        rows: Float32Rows = buffers.device_rows.numpy()[: len(ids)].copy()
        free.append(buffers)  # a failed run does not come here, and drops its buffers
        return rows

    def _make(self, bucket: Bucket) -> _Buffers:
        import onnxruntime as ort

        def on_device(shape: tuple[int, int], dtype: Any) -> Any:
            return ort.OrtValue.ortvalue_from_shape_and_type(
                list(shape), dtype, self._place.kind, self._place.device_id
            )

        ids_name, mask_name, output = self._names
        binding = self._session.io_binding()
        device_ids, device_mask = on_device(bucket, np.int64), on_device(bucket, np.int64)
        device_rows = on_device((bucket.rows, self._dim), np.float32)
        binding.bind_ortvalue_input(ids_name, device_ids)
        binding.bind_ortvalue_input(mask_name, device_mask)
        binding.bind_ortvalue_output(output, device_rows)
        options = ort.RunOptions()
        if self._graph_ids:
            options.add_run_config_entry(GRAPH_ID, str(self._graph_ids[bucket]))
        ids, mask = empty_inputs(bucket)
        return _Buffers(ids, mask, device_ids, device_mask, device_rows, binding, options)

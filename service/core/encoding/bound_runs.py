"""BoundRuns: an encoder's runs on a GPU, through buffers that stay where they are.

For each bucket there are buffers on the device for both inputs and the output, bound to the session
once (ONNX Runtime's IO binding). A run copies its padded batch into them, computes, and copies the
rows back; nothing is allocated. Buffers are kept in a pool, so lanes never wait for each other.

With CUDA graphs a run's kernels are recorded once for each bucket and launched as one. What is
recorded belongs to the thread that did it, and must not be used by two at once, so all runs then
happen on one thread of their own (docs/decisions/0019).
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
"""Run option that says which recorded graph a run is; 0 is ONNX Runtime's own."""
WARM_UP_RUNS: Final = 2
"""The first settles memory, and records the graph where there is one; the second shows the pace."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where buffers lie, as ONNX Runtime names it: cpu or cuda, and the device's number."""

    kind: str
    device_id: int = 0


@dataclass(slots=True)
class _Buffers:
    ids: Int64Rows
    mask: Int64Rows
    ids_there: Any
    mask_there: Any
    rows_there: Any
    binding: Any
    options: Any


class OneThread:
    """Calls from any thread, computed one after the other on a thread of their own.

    It is a daemon, unlike an executor's: a run that hangs must not keep the process from exiting.
    """

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def call(self, compute: Callable[[], Result]) -> Result:
        """What `compute` returns or raises, there."""
        future: Future[Result] = Future()
        self._calls.put((compute, future))
        return future.result()

    def stop(self) -> None:
        """End the thread after the calls that it has."""
        self._calls.put(None)

    def _work(self) -> None:
        while (given := self._calls.get()) is not None:
            compute, future = given
            try:
                future.set_result(compute())
            except BaseException as exc:  # whatever it is belongs to the caller
                future.set_exception(exc)
            del given, compute, future  # else the last call would hold the session while it waits


class BoundRuns:
    """Runs of one session. Safe to call from many threads at once."""

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
        """`names` are those of the ids, the mask and the output."""
        self._session, self._names, self._dim = session, names, dim
        self._buckets, self._place = buckets, place
        self._free: dict[Bucket, list[_Buffers]] = {bucket: [] for bucket in buckets}
        self._graph_ids = {bucket: i for i, bucket in enumerate(buckets, 1)} if graphs else {}
        self._thread = OneThread("cuda-graphs") if graphs else None
        if self._thread is not None:  # a bundle that was swapped out gives its GPU memory back
            weakref.finalize(self, self._thread.stop)

    def encode(self, ids: Int64Rows, mask: Int64Rows) -> Float32Rows:
        """(n, dim) rows for (n, length) token ids; raises ValueError for a text over the largest.

        What ONNX Runtime raises passes through.
        """
        if self._thread is not None:
            return self._thread.call(lambda: self._encode(ids, mask))
        return self._encode(ids, mask)

    def warm_up(self) -> dict[Bucket, float]:
        """Run every bucket, recording its graph where there are graphs; seconds each took."""
        took = {}
        for bucket in self._buckets:
            started = time.perf_counter()
            ids, mask = empty_inputs(bucket)
            mask[:] = 1
            for _ in range(WARM_UP_RUNS):
                self.encode(ids, mask)
            took[bucket] = time.perf_counter() - started
            log.info(
                "warmed up",
                extra={"fields": {"bucket": list(bucket), "seconds": round(took[bucket], 4)}},
            )
        return took

    def _encode(self, ids: Int64Rows, mask: Int64Rows) -> Float32Rows:
        found = np.empty((len(ids), self._dim), np.float32)
        for part in self._buckets.runs(len(ids)):
            found[part] = self._run(ids[part], mask[part])
        return found

    def _run(self, ids: Int64Rows, mask: Int64Rows) -> Float32Rows:
        bucket = self._buckets.fitting(*ids.shape)
        free = self._free[bucket]
        try:
            buffers = free.pop()  # one operation of the interpreter, so no lock is needed
        except IndexError:
            buffers = self._make(bucket)
        fill(ids, mask, buffers.ids, buffers.mask)
        buffers.ids_there.update_inplace(buffers.ids)
        buffers.mask_there.update_inplace(buffers.mask)
        self._session.run_with_iobinding(buffers.binding, buffers.options)
        # Copied, because on a CPU this is the buffer itself.
        rows: Float32Rows = buffers.rows_there.numpy()[: len(ids)].copy()
        free.append(buffers)  # not reached where a run failed: its buffers go with it
        return rows

    def _make(self, bucket: Bucket) -> _Buffers:
        import onnxruntime as ort

        def on_device(shape: tuple[int, int], dtype: Any) -> Any:
            return ort.OrtValue.ortvalue_from_shape_and_type(
                list(shape), dtype, self._place.kind, self._place.device_id
            )

        ids_name, mask_name, output = self._names
        binding = self._session.io_binding()
        ids_there, mask_there = on_device(bucket, np.int64), on_device(bucket, np.int64)
        rows_there = on_device((bucket.rows, self._dim), np.float32)
        binding.bind_ortvalue_input(ids_name, ids_there)
        binding.bind_ortvalue_input(mask_name, mask_there)
        binding.bind_ortvalue_output(output, rows_there)
        options = ort.RunOptions()
        if self._graph_ids:
            options.add_run_config_entry(GRAPH_ID, str(self._graph_ids[bucket]))
        ids, mask = empty_inputs(bucket)
        return _Buffers(ids, mask, ids_there, mask_there, rows_there, binding, options)

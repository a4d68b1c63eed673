"""The measured queries of one step as columns, joined from LoadGen's trace and the client's record.

Kept beside the results as `samples.npz`, so that charts and later questions need no second run.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loadtest.client.outcomes import OK
from loadtest.client.recorder import Recorder
from loadtest.errors import LoadTestError
from loadtest.loadgen_log import Trace

SAMPLES_FILE = "samples.npz"
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Samples:
    """One row per scheduled query, in order; times in seconds."""

    scheduled_s: Floats  # (n,) from the first scheduled query
    from_schedule_s: Floats  # (n,) latency from the scheduled time, as LoadGen took it
    from_send_s: Floats  # (n,) latency from the actual write; NaN where nothing was sent
    code: npt.NDArray[np.int64]  # (n,) status, or a negative Failure

    @property
    def ok(self) -> npt.NDArray[np.bool_]:
        """Which queries were answered with a usable 200."""
        return np.equal(self.code, OK)

    def save(self, path: Path) -> None:
        """Write the columns as a compressed npz."""
        np.savez_compressed(path, allow_pickle=False, **asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Samples":
        """Read back what `save` wrote."""
        with np.load(path, allow_pickle=False) as columns:
            return cls(**{name: columns[name] for name in columns.files})


def join(trace: Trace, recorder: Recorder) -> Samples:
    """Put LoadGen's and the client's view of every query side by side.

    Both number the queries by issue order. The query each says it was is compared, because a
    mismatch would pair one query's answer with another's schedule.
    """
    issued = np.asarray(recorder.query_row, dtype=np.int64)
    if not np.array_equal(issued, trace.query_row):
        raise LoadTestError(
            f"LoadGen's trace lists {len(trace.query_row)} queries and the client sent "
            f"{len(issued)}, or in another order; this result cannot be trusted. Run it again."
        )
    return Samples(
        scheduled_s=trace.scheduled_s,
        from_schedule_s=trace.completed_s,
        from_send_s=np.asarray(recorder.ended_s) - np.asarray(recorder.sent_s),
        code=np.asarray(recorder.code, dtype=np.int64),
    )

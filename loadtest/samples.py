"""The queries of one step as columns, joined from LoadGen's trace and the client's record.

The worker saves them as `samples.npz` beside the results. The report draws its charts from that
file, and an analysis after the test can read it.
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
    """Columns with one entry a query, in the order of schedule; times in seconds."""

    scheduled_s: Floats  # (n,) from the first scheduled query
    from_schedule_s: Floats  # (n,) latency from the scheduled time, by LoadGen's clock
    from_send_s: Floats  # (n,) latency from the write; NaN where the query was never sent
    code: npt.NDArray[np.int64]  # (n,) status, or a negative Failure

    @property
    def ok(self) -> npt.NDArray[np.bool_]:
        """Mask (n,) of the queries with a usable 200."""
        return np.equal(self.code, OK)

    def save(self, path: Path) -> None:
        """Write the columns as a compressed npz."""
        np.savez_compressed(path, allow_pickle=False, **asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Samples":
        """Read the columns from a file that `save` wrote."""
        with np.load(path, allow_pickle=False) as columns:
            return cls(**{name: columns[name] for name in columns.files})


def join(trace: Trace, recorder: Recorder) -> Samples:
    """Join LoadGen's and the client's records of every query by their order of issue.

    Raises LoadTestError where the two disagree about a query's text: the join would give one query
    the schedule of another.
    """
    issued = np.asarray(recorder.query_row, dtype=np.int64)
    if not np.array_equal(issued, trace.query_row):
        raise LoadTestError(
            f"LoadGen's trace ({len(trace.query_row)} queries) and the client's record "
            f"({len(issued)} queries) differ, so this result cannot be trusted. Run the test again."
        )
    return Samples(
        scheduled_s=trace.scheduled_s,
        from_schedule_s=trace.completed_s,
        from_send_s=np.asarray(recorder.ended_s) - np.asarray(recorder.sent_s),
        code=np.asarray(recorder.code, dtype=np.int64),
    )

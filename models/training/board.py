"""Curves for TensorBoard: one event file for each start of a run.

The training thread writes them itself. The library's own writer has a queue and a thread; after a
full disk that thread never empties the queue again, and training would wait for ever. Curves are a
help and no result. So after a failed write the board logs a warning and stops writing.
"""

import contextlib
import logging
import time
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

log = logging.getLogger(__name__)


class Board:
    """An open event file in `folder`; TensorBoard drops older points from `first_step` on."""

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names, and two starts may share a second.
        number = sum(1 for _ in folder.iterdir())
        self._path = folder / f"events.out.tfevents.{int(time.time())}.{number}"
        self._file: RecordWriter | None = RecordWriter(str(self._path))
        self._write(Event(file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._write(Event(step=first_step, session_log=start))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Add a point to the curve `name`."""
        self._write(Event(step=step, summary=scalar(name, value)))

    def flush(self) -> None:
        """Write all points to the disk."""
        if self._file is not None:
            try:
                self._file.flush()
            except OSError as exc:
                self._give_up(exc)

    def close(self) -> None:
        """Write all points to the disk and close the file; later points are dropped."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, event: Event) -> None:
        if self._file is not None:
            event.wall_time = time.time()
            try:
                self._file.write(event.SerializeToString())
            except OSError as exc:
                self._give_up(exc)

    def _give_up(self, exc: OSError) -> None:
        assert self._file is not None
        with contextlib.suppress(OSError):  # closing writes the buffer once more
            self._file.close()
        self._file = None
        log.warning("%s gets no more curves: %s", self._path, exc.strerror or exc)

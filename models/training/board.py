"""Curves for TensorBoard: one event file for each start of a run, written as training goes on.

The thread that trains writes, with no queue between: the queue of the library's own writer is never
emptied again once its thread has met a full disk, and training would wait for it for ever. Curves
are a help and no result, so a file that cannot be written is given up with a warning.
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
    """An open event file in `folder`; points of earlier files at `first_step` or later are void."""

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names; two starts may share a second.
        number = sum(1 for _ in folder.iterdir())
        self._path = folder / f"events.out.tfevents.{int(time.time())}.{number}"
        self._file: RecordWriter | None = RecordWriter(str(self._path))
        self._write(Event(file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._write(Event(step=first_step, session_log=start))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """One point of the curve `name`."""
        self._write(Event(step=step, summary=scalar(name, value)))

    def flush(self) -> None:
        """Bring what was added to the disk."""
        if self._file is not None:
            try:
                self._file.flush()
            except OSError as exc:
                self._give_up(exc)

    def close(self) -> None:
        """Nothing more will be added."""
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
        with contextlib.suppress(OSError):  # closing tries to write what was left
            self._file.close()
        self._file = None
        log.warning("%s gets no more curves: %s", self._path, exc.strerror or exc)

"""RowLog: rows that wait in bounded memory, then in a `.part` file, then in a Parquet file.

A `.part` file is an Arrow IPC stream (https://arrow.apache.org/docs/format/Columnar.html). It is
whole after every write, so a kill costs only rows that waited in memory. Its writer locks it. A
process that starts finds those without a lock and makes Parquet files of them. This module needs
pyarrow: import it late.
"""

import contextlib
import fcntl
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from service.atomic import sync, write_atomic

Row = tuple[Any, ...]

MAX_WAITING_BYTES: Final = 64 << 20
"""Most bytes of rows that wait for the disk. A choice: half a minute of 5,000 events a second."""

ROW_BYTES: Final = 400
"""Estimate of a row's memory beside its texts: a tuple, a float, and short strings of 50 bytes."""

MAX_BATCH_ROWS: Final = 20_000
"""Most rows in one record batch. A choice: its columns are made within some milliseconds."""


class RowLog:
    """The log of one kind of rows in a folder. `append` is quick; `flush` and `close` write.

    `append` is for any thread, `flush` and `close` for one thread at a time.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        schema: pa.Schema,
        max_file_bytes: int,
        max_file_s: float,
        expand: Callable[..., Iterable[Row]] = lambda *row: [row],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Rows of `schema` go to files that roll at `max_file_bytes` or after `max_file_s`.

        `expand` makes the rows of one row that was appended, on the thread that writes.
        """
        self.folder, self._kind, self._schema = folder, kind, schema
        self._max_file_bytes, self._max_file_s, self._clock = max_file_bytes, max_file_s, clock
        self._expand = expand
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Sequence[Row], int]] = deque()
        self._waiting_bytes = 0
        self._part: _Part | None = None
        self._failing = False

    def append(self, rows: Sequence[Row], text_bytes: int) -> bool:
        """Take all these rows, or none while the disk fails or too many wait.

        `text_bytes` is about how many bytes their texts have together.
        """
        size = text_bytes + ROW_BYTES * len(rows)
        with self._lock:
            if self._failing or self._waiting_bytes + size > MAX_WAITING_BYTES:
                return False
            self._waiting.append((rows, size))
            self._waiting_bytes += size
        return True

    def flush(self) -> None:
        """Write the rows that wait, and roll the file if it is due. Raises OSError.

        After an error the rows still wait, and `append` refuses more until a flush succeeds.
        """
        try:
            self._write()
            self._roll_if_due()
        except BaseException:
            self._failing = True
            raise
        self._failing = False

    def close(self) -> None:
        """Write the rows that wait, and make the last file a Parquet file. Raises OSError."""
        self._write()
        self._roll()

    def recover(self) -> None:
        """Make Parquet files of what killed processes left. Raises OSError."""
        for path in sorted(self.folder.glob(f"{self._kind}-*.part")):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # its writer lives
                _seal(path, self._schema)

    def _write(self) -> None:
        while self._waiting:
            if self._part is None:
                self._part = _Part.new(self.folder, self._kind, self._schema, self._clock())
            rows: list[Row] = []
            n_taken = size = 0
            for taken, n_bytes in tuple(self._waiting):  # appending goes on at the other end
                if rows and len(rows) + len(taken) > MAX_BATCH_ROWS:
                    break
                rows += (row for one in taken for row in self._expand(*one))
                n_taken, size = n_taken + 1, size + n_bytes
            self._part.write(_batch(rows, self._schema).serialize())
            with self._lock:
                for _ in range(n_taken):
                    self._waiting.popleft()
                self._waiting_bytes -= size

    def _roll_if_due(self) -> None:
        part = self._part
        if part is not None and (
            part.n_bytes >= self._max_file_bytes
            or self._clock() - part.started_s >= self._max_file_s
        ):
            self._roll()

    def _roll(self) -> None:
        if self._part is not None:
            _seal(self._part.path, self._schema)
            self._part.close()
            self._part = None


def _batch(rows: Sequence[Row], schema: pa.Schema) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    arrays = [pa.array(column, type_) for column, type_ in zip(columns, schema.types, strict=True)]
    return pa.record_batch(arrays, schema=schema)


class _Part:
    """A locked `.part` file that is being written."""

    def __init__(self, path: Path, handle: int, started_s: float) -> None:
        self.path, self.started_s, self.n_bytes = path, started_s, 0
        self._handle = handle

    @classmethod
    def new(cls, folder: Path, kind: str, schema: pa.Schema, started_s: float) -> "_Part":
        """A file with a name of its own, which sorts by time. Raises OSError."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        path = folder / f"{kind}-{stamp}-{uuid.uuid4().hex[:12]}.part"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part = cls(path, handle, started_s)
            part.write(schema.serialize())
            sync(folder)
        except BaseException:
            path.unlink(missing_ok=True)
            os.close(handle)
            raise
        return part

    def write(self, message: pa.Buffer) -> None:
        """Append one message whole and flush it to the disk, or not at all. Raises OSError."""
        left = memoryview(message)
        try:
            while left:
                left = left[os.write(self._handle, left) :]
            os.fdatasync(self._handle)
        except BaseException:
            os.ftruncate(self._handle, self.n_bytes)
            os.lseek(self._handle, self.n_bytes, os.SEEK_SET)
            raise
        self.n_bytes += len(message)

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._handle)


def _seal(part: Path, schema: pa.Schema) -> None:
    """Make a Parquet file of a `.part` file, which it then removes. Raises OSError.

    The last message of a killed process may be cut off; it is left out. A file without rows gives
    no Parquet file.
    """
    target = part.with_suffix(".parquet")
    with contextlib.suppress(pa.ArrowInvalid), pa.memory_map(str(part)) as source:
        reader = pa.ipc.open_stream(source)
        if (first := _next(reader)) is not None:

            def write(temporary: Path) -> None:
                with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
                    batch: pa.RecordBatch | None = first
                    while batch is not None:
                        writer.write_batch(batch)
                        batch = _next(reader)

            write_atomic(target, write)
    part.unlink()


def _next(reader: pa.RecordBatchStreamReader) -> pa.RecordBatch | None:
    """The next whole batch."""
    try:
        return reader.read_next_batch()
    except (StopIteration, pa.ArrowInvalid, OSError):
        return None

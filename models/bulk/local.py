"""Answers for files of texts on this machine: one Parquet file for each input file.

The parent reads and writes, forked workers score. Batches come back in their order, so a file does
not depend on the number of workers. A file is written aside and renamed: one that is there is
whole, and the same command skips it.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.bulk.inputs import InputFile, input_paths, open_input
from models.bulk.score import Scorer, answer_schema
from models.errors import RunError
from service.atomic import write_atomic, write_text
from service.recommender import Recommender

log = logging.getLogger(__name__)

SUMMARY_FILE: Final = "_SUMMARY.json"
ERROR_KINDS: Final = 20
"""Most sentences of errors in the summary: a choice, enough to see what is wrong."""
_AHEAD: Final = 3
"""Batches a worker read but not written: a choice, so that no worker waits for the disk."""
_LOG_EVERY_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Arguments:
    """What is asked of all texts; None leaves it to the bundle or to a guess."""

    text: str | None = None
    id: str | None = None
    k: int | None = None
    effort: str | None = None
    where: dict[str, Any] | None = None
    min_score: float | None = None


def predict(
    bundle: Path, inputs: Sequence[str], out: Path, arguments: Arguments, workers: int
) -> dict[str, Any]:
    """Answer all files into the folder `out`; returns what `_SUMMARY.json` holds.

    Raises DataError, RunError, InvalidValue, BundleError.
    """
    paths = input_paths(inputs)
    with Recommender.open(bundle) as recommender, ExitStack() as stack:
        request = recommender.request(
            k=arguments.k,
            effort=arguments.effort,
            where=arguments.where,
            min_score=arguments.min_score,
        )
        scorer = Scorer(recommender, request)
        pool = stack.enter_context(_pool(scorer, workers)) if workers > 1 else None
        out.mkdir(parents=True, exist_ok=True)
        job = _Job(scorer, pool, workers, out, recommender.bundle_id, arguments, len(paths))
        for path in paths:
            job.answer(open_input(path, arguments.text, arguments.id))
        summary = job.summary()
    write_text(out / SUMMARY_FILE, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary


class _Job:
    """Counts and files of one run."""

    def __init__(
        self,
        scorer: Scorer,
        pool: ProcessPoolExecutor | None,
        workers: int,
        out: Path,
        bundle_id: str,
        arguments: Arguments,
        n_files: int,
    ) -> None:
        self.scorer, self.pool, self.workers = scorer, pool, workers
        self.out, self.bundle_id, self.arguments, self.n_files = out, bundle_id, arguments, n_files
        self.files: list[dict[str, Any]] = []
        self.rows = self.failed = self.truncated = 0
        self.errors: dict[str, int] = {}
        self.began_s = self.logged_s = time.monotonic()

    def answer(self, file: InputFile) -> None:
        """Write the answers of one file, unless they are there."""
        target = self.out / self._name(file)
        entry = {"in": str(file.path), "out": target.name}
        if target.exists():
            self.files.append({**entry, "skipped": True})
            return
        before = self.rows
        write_atomic(target, lambda temporary: self._write(temporary, file))
        self.files.append({**entry, "rows": self.rows - before, "bad_lines": len(file.skipped)})

    def _name(self, file: InputFile) -> str:
        """A name made of the file's path, size and time, the bundle and the arguments."""
        stat = file.path.stat()
        key: list[Any] = [str(file.path.resolve()), stat.st_size, stat.st_mtime_ns, self.bundle_id]
        key.append(asdict(self.arguments))
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return f"{file.path.name.split('.')[0]}-{digest[:16]}.parquet"

    def _write(self, temporary: Path, file: InputFile) -> None:
        schema = answer_schema(file.id_type).with_metadata({"bundle_id": self.bundle_id})
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for answers in self._scored(file.batches()):
                writer.write_batch(answers.replace_schema_metadata(schema.metadata))
                self._count(answers)
                self._report()

    def _scored(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        if self.pool is None:
            yield from map(self.scorer.score, batches)
            return
        waiting: deque[Future[pa.RecordBatch]] = deque()
        try:
            for batch in batches:
                waiting.append(self.pool.submit(_score, batch))
                if len(waiting) > self.workers * _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as exc:
            raise RunError("a worker ended: the same command goes on with the next file") from exc

    def _count(self, answers: pa.RecordBatch) -> None:
        self.rows += answers.num_rows
        self.truncated += pc.sum(answers.column("truncated")).as_py() or 0
        for counted in pc.value_counts(answers.column("error").drop_null()).to_pylist():
            self.failed += counted["counts"]
            if counted["values"] in self.errors or len(self.errors) < ERROR_KINDS:
                known = self.errors.get(counted["values"], 0)
                self.errors[counted["values"]] = known + counted["counts"]

    def _report(self) -> None:
        now = time.monotonic()
        if now - self.logged_s < _LOG_EVERY_S:
            return
        self.logged_s = now
        spent_s = now - self.began_s
        done = len(self.files)
        left = f"{spent_s / done * (self.n_files - done):.0f} s left" if done else "first file"
        rate = self.rows / spent_s
        log.info("%d texts, %.0f a second, %d of %d files, %s", self.rows, rate, done,
                 self.n_files, left)  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """Counts, rates, errors, the bundle and the arguments."""
        seconds = time.monotonic() - self.began_s
        return {
            "bundle_id": self.bundle_id,
            "arguments": asdict(self.arguments),
            "workers": self.workers,
            "rows": self.rows,
            "failed_rows": self.failed,
            "truncated_rows": self.truncated,
            "errors": self.errors,
            "seconds": round(seconds, 3),
            "rows_per_second": round(self.rows / seconds, 1),
            "files": self.files,
        }


_scorer: Scorer | None = None
"""What the workers of this process inherit by fork: an open bundle cannot be sent."""


def _pool(scorer: Scorer, workers: int) -> ProcessPoolExecutor:
    """Workers that share the pages of the open bundle; they are forked before a file is read."""
    global _scorer
    _scorer = scorer
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, context, initializer=_end_with_parent)
    pool.submit(os.getpid).result()  # the first task forks all of them
    return pool


def _end_with_parent() -> None:
    """End this worker when its parent is killed, which could not end it any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _score(batch: pa.RecordBatch) -> pa.RecordBatch:
    assert _scorer is not None
    return _scorer.score(batch)

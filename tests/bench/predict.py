"""What does `python -m models predict` cost beside the engine, and does its memory stay flat?

    python -m tests.bench.predict BUNDLE TEXTS --most 1000000

TEXTS is a Parquet file with a column `text`. It prints CPU seconds of the engine alone and of
scoring with reading and writing, in one process, in turns; then the peak of private memory
(RssAnon) from 10,000 to `--most` texts. Linux only.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from models.bulk.local import Arguments, predict
from service import Recommender
from service.recommender import TEXTS_AT_ONCE


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("texts", type=Path, help="a Parquet file with a column `text`")
    parser.add_argument("--most", type=int, default=1_000_000, help="texts of the largest file")
    parser.add_argument("--memory-of", type=Path, help="only predict this file and print memory")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.memory_of is not None:
            with peak_private_mb() as peaks:
                predict(args.bundle, [str(args.memory_of)], folder, Arguments(), 1)
            print(round(max(peaks)))
            return
        texts = pq.read_table(args.texts, columns=["text"]).column("text").to_pylist()
        _cost(args.bundle, texts, folder)
        for n in (10_000, args.most):
            path = folder / f"{n}.parquet"
            _write(path, texts, n)
            command = [sys.executable, "-m", "tests.bench.predict", str(args.bundle)]
            command += [str(args.texts), "--memory-of", str(path)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(f"{n} texts: peak private memory {done.stdout.strip()} MB")


@contextlib.contextmanager
def peak_private_mb() -> Iterator[list[float]]:
    """Private memory of this process, in MB, looked at twenty times a second."""
    peaks, stop = [0.0], threading.Event()

    def look() -> None:
        while not stop.wait(0.05):
            status = Path("/proc/self/status").read_text()
            peaks.append(int(status.partition("RssAnon:")[2].split()[0]) / 1024)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peaks
    finally:
        stop.set()
        thread.join()


def _write(path: Path, texts: list[str], n: int) -> None:
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
        for start in range(0, n, len(texts)):
            writer.write_table(pa.table({"text": texts[: n - start]}))


def _cost(bundle: Path, texts: list[str], folder: Path) -> None:
    path = folder / "texts.parquet"
    _write(path, texts, len(texts))
    with Recommender.open(bundle) as recommender:
        request = recommender.request()
        for turn in range(3):
            began_s = time.process_time()
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                recommender.predict(texts[start : start + TEXTS_AT_ONCE], request)
            engine_s = time.process_time() - began_s
            began_s = time.process_time()
            Recommender.open(bundle).close()
            open_s = time.process_time() - began_s
            began_s = time.process_time()
            predict(bundle, [str(path)], folder / str(turn), Arguments(), 1)
            whole_s = time.process_time() - began_s - open_s
            ratio = engine_s / whole_s
            print(f"engine {engine_s:.2f} CPU-s, predict {whole_s:.2f} CPU-s, rate {ratio:.2f}")


if __name__ == "__main__":
    main()

"""What `python -m models predict` costs beside the engine: python -m tests.bench.predict BUNDLE

It prints CPU seconds of the engine alone and of scoring with reading and writing, in one process,
in turns, then peak memory from 10,000 to N texts.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
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
            predict(args.bundle, [str(args.memory_of)], folder, Arguments(), 1)
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
            return
        texts = pq.read_table(args.texts, columns=["text"]).column("text").to_pylist()
        _cost(args.bundle, texts, folder)
        for n in (10_000, args.most):
            path = folder / f"{n}.parquet"
            _write(path, texts, n)
            command = [sys.executable, "-m", "tests.bench.predict", str(args.bundle)]
            command += [str(args.texts), "--memory-of", str(path)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(f"{n} texts: peak memory {done.stdout.strip()} MB")


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

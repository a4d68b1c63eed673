"""What do changes to a catalogue cost in searches, in the calls themselves, and at the next start?

    python -m tests.bench.catalogue_cost --bundle PATH [--labels 1000000]

Times searches by the size of the delta and by the number of tombstones, then applying changes and
opening the catalogue again. A search is one query on one thread, for ten labels at the bundle's
default effort. Its time is the lower quartile of nine passes, and the figure is the median over 300
queries (docs/decisions/0016). The text of an added label is two texts of the bundle's labels.

The second part writes stores of 12,000 and of `--labels` labels, and times the index of metadata,
a filter, and the directory of ids.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.index.efforts import one_by_one_us
from service.core.catalogue.changes import Change
from service.core.catalogue.fields import FieldIndex
from service.core.catalogue.live import LiveCatalogue
from service.core.catalogue.sqlite_store import SqliteStore
from service.core.encoding.embedding import embed_texts
from service.core.engine import Engine
from service.core.labels.label_directory import LabelDirectory, write_directory
from service.core.labels.labels import Label, LabelStore, write_labels
from tests.support.shop import catalogue_of

DELTAS = (0, 100, 1000, 3000, 10_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--labels", type=int, default=1_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        searches(args.bundle, Path(folder))
        stores(Path(folder), args.labels)


def searches(bundle: Path, state: Path) -> None:
    """Time searches and changes of one bundle; print a line for each."""
    engine = Engine.open(bundle, device="cpu")
    effort = engine.manifest.defaults.effort
    print(f"{engine.manifest.name}, {engine.index.n_rows} labels of {engine.encoder.dim}, {effort}")
    rng = np.random.default_rng(0)
    names = [engine.labels[int(row)].text for row in rng.integers(engine.index.n_rows, size=20_000)]
    texts = [f"{one} {two}" for one, two in zip(names[:10_000], names[10_000:], strict=True)]
    queries = embed_texts(engine.tokenizer, engine.encoder, names[:300], 16384)
    store = SqliteStore(state / "cost.sqlite", "cost")
    catalogue = catalogue_of(engine, store)
    n_added = 0
    for size in DELTAS:
        new = [Change("add", f"new-{i}", texts[i]) for i in range(n_added, size)]
        seconds = timed(lambda new=new: catalogue.apply(new)) if new else 0.0  # type: ignore[misc]
        us = quartile_us(catalogue, effort, queries)
        print(f"{size:6} in the delta: {us:6.0f} us; {len(new)} added in {seconds:.2f} s")
        n_added = size
    singly = [
        timed(lambda i=i: catalogue.apply([Change("add", f"one-{i}", texts[i])]))  # type: ignore[misc]
        for i in range(100)
    ]
    print(f"one label added alone: {1e3 * np.median(singly):.1f} ms")
    print(f"a poll without a change: {1e6 * min(timed(catalogue.poll) for _ in range(999)):.1f} us")
    print(f"opened again: {timed(lambda: catalogue_of(engine, store)):.2f} s")
    size = store.path.stat().st_size / 1e6
    store.close()
    print(f"file: {size:.1f} MB without its journal")
    removed = SqliteStore(state / "removed.sqlite", "removed")
    catalogue = catalogue_of(engine, removed)
    for n_removed in (100, 1000, 6000):
        removals = [Change("remove", engine.labels[i].label_id) for i in range(n_removed)]
        removals = [each for each in removals if catalogue.row_of(each.label_id) is not None]
        catalogue.apply(removals)
        us = quartile_us(catalogue, effort, queries)
        print(f"{n_removed:6} tombstones: {us:6.0f} us")
    removed.close()


def stores(folder: Path, n_labels: int) -> None:
    """Time what the service builds over stores of made-up labels; print a line for each store."""
    for n in (12_000, n_labels):
        labels = (
            Label(f"id-{i}", f"label {i}", {"shelf": i % 50, "tags": ["a", f"t{i % 1000}"]})
            for i in range(n)
        )
        write_labels(folder, labels)
        store = LabelStore(folder)
        ids = [f"id-{i}" for i in range(n)]
        fields_s = timed(lambda store=store: FieldIndex(store.scan_metadata()))  # type: ignore[misc]
        index = FieldIndex(store.scan_metadata())
        filter_s = min(
            timed(lambda index=index: index.rows_where({"shelf": [1, 2], "tags": "a"}))
            for _ in range(9)
        )  # type: ignore[misc]
        hash_s = timed(lambda store=store: LabelDirectory.of(store))  # type: ignore[misc]
        write_directory(folder, ids)
        directory = LabelDirectory.open(folder, store)
        look_up_s = min(timed(lambda d=directory, n=n: d.row_of(f"id-{n - 1}")) for _ in range(99))  # type: ignore[misc]
        print(
            f"{n} labels: fields {fields_s:.2f} s, a filter of two fields {1e3 * filter_s:.2f} ms, "
            f"ids in memory {hash_s:.2f} s, one id {1e6 * look_up_s:.1f} us"
        )


def quartile_us(catalogue: LiveCatalogue, effort: str, queries: NDArray[np.float32]) -> float:
    """Median over the queries of each one's lower quartile of nine passes, in microseconds."""
    passes = [one_by_one_us(catalogue, effort, queries) for _ in range(9)]
    return float(np.median(np.percentile(passes, 25, axis=0)))


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

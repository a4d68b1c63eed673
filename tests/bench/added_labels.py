"""How much worse is a label that is added by its text than one that was trained?

    python -m tests.bench.added_labels --bundle PATH [--split validation] [--labels 300] [--seeds 3]

Draws labels that occur in the split, hides them from a sealed bundle, and adds them again by their
texts through the live catalogue. Measures the bundle as trained, without these labels, and with
them added at each boost; the queries are the same. A boost multiplies the length of an added
label's vector (service.core.catalogue.placement). Choose a boost by the validation points, and look
at the test points only once, at the end.

P@1 and P@5 count all labels. recall@10 counts the hidden labels only, and `places` is their share
of all first ten places. The paths in the bundle's configuration must lead to its data.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from models.config import Config
from models.data.dataset import Dataset, point_texts
from models.data.prepare import open_configured, split
from service.bundle.verify import resolve
from service.core.catalogue import placement
from service.core.catalogue.changes import Change
from service.core.catalogue.live import LiveCatalogue
from service.core.catalogue.sqlite_store import SqliteStore
from service.core.encoding.embedding import embed_texts
from service.core.engine import Engine

AT_ONCE = 16384
K = 10


def main() -> None:
    args = _parser().parse_args()
    folder = resolve(args.bundle)
    engine = Engine.open(folder, device="cpu")
    config = Config.model_validate(engine.manifest.config)
    dataset = open_configured(config)
    points, texts = _points(dataset, config, args.split, args.queries)
    queries = embed_texts(engine.tokenizer, engine.encoder, texts, AT_ONCE)
    bench = Bench(engine, dataset.labels.uids, queries, points.toarray() > 0)
    boosts = [float(each) for each in args.boosts.split(",")]
    rounds_by_name: dict[str, list[list[float]]] = {}
    for seed in range(args.seeds):
        for name, figures in bench.measure(args.labels, boosts, np.random.default_rng(seed)):
            rounds_by_name.setdefault(name, []).append(figures)
    measured_on = f"{len(texts)} {args.split} queries, {args.seeds} seeds"
    print(f"{engine.manifest.name} {folder.name[:12]}, {measured_on}")
    print(f"{'':<12}{'P@1':>8}{'P@5':>8}{'recall@10':>11}{'places':>8}   percent")
    for name, rounds in rounds_by_name.items():
        p1, p5, recall, places = np.mean(rounds, axis=0)
        print(f"{name:<12}{p1:8.2f}{p5:8.2f}{recall:11.2f}{places:8.2f}")


class Bench:
    """A bundle, and queries (n, dim) with their relevant labels (n, len(ids))."""

    def __init__(
        self,
        engine: Engine,
        ids: Sequence[str],
        queries: NDArray[np.float32],
        truth: NDArray[np.bool_],
    ) -> None:
        self.engine, self.ids, self.queries, self.truth = engine, ids, queries, truth

    def measure(
        self, n_labels: int, boosts: list[float], rng: np.random.Generator
    ) -> Iterator[tuple[str, list[float]]]:
        """Name and figures of the bundle as trained, without the labels, and at each boost."""
        hidden = rng.choice(np.flatnonzero(self.truth.any(axis=0)), n_labels, replace=False)
        labels = [self.engine.labels[int(row)] for row in hidden]
        yield "trained", self._figures(self._catalogue(None), hidden)
        before = placement.BOOST
        for boost in [0.0, *boosts]:
            with tempfile.TemporaryDirectory() as state:
                store = SqliteStore(Path(state) / "bench.sqlite", "bench")
                placement.BOOST = boost or before  # type: ignore[misc]
                catalogue = self._catalogue(store)
                catalogue.apply([Change("remove", label.label_id) for label in labels])
                if boost:
                    # Under their own ids they would get their trained vectors back.
                    catalogue.apply(
                        [Change("add", f"+{each.label_id}", each.text) for each in labels]
                    )
                yield f"boost {boost:g}" if boost else "hidden", self._figures(catalogue, hidden)
                store.close()
        placement.BOOST = before  # type: ignore[misc]

    def _catalogue(self, store: SqliteStore | None) -> LiveCatalogue:
        return self.engine.catalogue if store is None else self.engine.with_store(store).catalogue

    def _figures(self, catalogue: LiveCatalogue, hidden: NDArray[np.int64]) -> list[float]:
        effort = self.engine.manifest.defaults.effort
        rows = catalogue.search(self.queries, K, effort).rows
        column_of = {label_id: column for column, label_id in enumerate(self.ids)}
        columns = {
            row: column_of[catalogue.label(row).label_id.removeprefix("+")]
            for row in np.unique(rows).tolist()
        }
        ranked = np.vectorize(columns.__getitem__)(rows)
        hits = np.take_along_axis(self.truth, ranked, axis=1)
        is_hidden = np.isin(ranked, hidden)
        recall = (hits & is_hidden).sum() / self.truth[:, hidden].sum()
        shares = hits[:, 0].mean(), hits[:, :5].mean(), recall, is_hidden.mean()
        return [100 * float(share) for share in shares]


def _points(
    dataset: Dataset, config: Config, split_name: str, limit: int
) -> tuple[csr_array, list[str]]:
    """Labels (n, n_labels) and texts of the first `limit` points of a split."""
    if split_name == "test":
        assert dataset.test is not None
        return dataset.test.labels[:limit], point_texts(dataset.test, config.data.fields)[:limit]
    rows = split(config, dataset).validation_rows[:limit]
    texts = point_texts(dataset.train, config.data.fields)
    return dataset.train.labels[rows], [texts[row] for row in rows]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--queries", type=int, default=3000)
    parser.add_argument("--labels", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--boosts", default="1,1.2,1.3,1.4,1.5,1.6,1.7,1.8,2")
    return parser


if __name__ == "__main__":
    main()

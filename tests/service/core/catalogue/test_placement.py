"""Placement over small indexes made by hand: what an added label scores with its own text."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from service.core.catalogue.placement import (
    BOOST,
    SAMPLE,
    Placement,
    logistic,
    placement_of,
    sample_rows,
)
from service.core.index.augmented import AugmentedIndex, Blend
from service.core.index.faiss_index import FaissIndex
from service.core.index.memory_labels import MemoryLabels
from service.core.labels.labels import Label, LabelStore, write_labels

DIM = 16
N_LABELS = 200
EFFORTS = {"exact": {}}


class Shop:
    """Labels whose texts are embedded as fixed vectors; a label scores `own` with its own text."""

    def __init__(self, folder: Path, own: float, length: float = 1.0) -> None:
        """`length` is that of a text's embedding."""
        rng = np.random.default_rng(3)
        unit = rng.standard_normal((N_LABELS, DIM)).astype(np.float32)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        self.texts = np.float32(length) * unit
        self.vectors = np.float32(own / length) * unit
        write_labels(folder, [Label(f"L{row}", str(row)) for row in range(N_LABELS)])
        self.labels = LabelStore(folder)
        self.n_embedded = 0

    def embed(self, texts: "list[str]") -> np.ndarray:
        self.n_embedded += len(texts)
        return self.texts[[int(text) for text in texts]]

    def index(self) -> FaissIndex:
        raw = faiss.IndexFlatIP(DIM)
        raw.add(self.vectors)
        return FaissIndex(raw, EFFORTS)

    def placement(self, index=None, metric: str = "inner_product", **options) -> Placement:
        return placement_of(index or self.index(), metric, self.labels, self.embed, **options)

    def own_score(self, placement: Placement) -> float:
        """What an added label scores with its own text as the query: the median of all."""
        products = placement.scale * (self.texts**2).sum(axis=1)
        return float(
            np.median(products if placement.to_score is None else placement.to_score(products))
        )


@pytest.mark.parametrize("length", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("own", [0.3, 1.0, 7.0])
def test_an_added_label_scores_so_many_times_what_trained_ones_do(
    tmp_path: Path, own: float, length: float
) -> None:
    shop = Shop(tmp_path, own, length)
    assert shop.own_score(shop.placement()) == pytest.approx(BOOST * own, rel=1e-4)


def test_labels_that_score_below_zero_with_their_own_texts_turn_none_around(tmp_path: Path) -> None:
    shop = Shop(tmp_path, own=-2.0)
    assert 0 < shop.own_score(shop.placement()) < 0.01


def test_the_scale_of_an_earlier_fold_is_kept_and_nothing_is_measured(tmp_path: Path) -> None:
    shop = Shop(tmp_path, own=1.0)
    assert shop.placement(scale=0.25) == Placement(0.25)
    assert shop.n_embedded == 0


def test_an_index_that_shows_no_vectors_is_measured_by_search(tmp_path: Path) -> None:
    shop = Shop(tmp_path, own=1.0)
    hidden = Hidden(shop.index())
    assert shop.own_score(shop.placement(hidden)) == pytest.approx(BOOST, rel=1e-4)


class Hidden:
    """An index of which only its search is known."""

    def __init__(self, index: FaissIndex) -> None:
        self.search = index.search


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_beside_a_memory_an_added_label_scores_its_share_of_a_probability(
    tmp_path: Path, weight: float
) -> None:
    shop, bias = Shop(tmp_path, own=2.0), -1.0
    nothing = MemoryLabels(np.zeros(N_LABELS + 1, np.int64), np.empty(0, "i4"), np.empty(0, "f4"))
    settings = Blend(weight, temperature=0.1, neighbours=5, depth=20, logit_bias=bias)
    index = AugmentedIndex(shop.index(), shop.index(), nothing, settings)
    expected = (1 - weight) / (1 + np.exp(-(BOOST * 2.0 + bias)))
    assert shop.own_score(shop.placement(index)) == pytest.approx(expected, rel=1e-4)


class Probabilities(Hidden):
    """The same index, with scores that are probabilities already."""

    def __init__(self, index: FaissIndex, slope: float, bias: float) -> None:
        def search(queries, k, effort):
            hits = index.search(queries, k, effort)
            return type(hits)(hits.rows, logistic(slope, bias)(hits.scores))

        self.search = search


@pytest.mark.parametrize(("slope", "bias"), [(4.0, -3.0), (8.0, -2.0)])
def test_where_scores_are_probabilities_products_are_mapped_to_them(
    tmp_path: Path, slope: float, bias: float
) -> None:
    shop = Shop(tmp_path, own=1.0)
    placement = shop.placement(Probabilities(shop.index(), slope, bias), metric="probability")
    assert placement.scale == 1.0
    products = np.array([1.0, 0.8, 0.5, 0.0], np.float32)
    np.testing.assert_allclose(
        placement.to_score(products), logistic(slope, bias)(products), atol=0.02
    )


def test_where_every_label_scores_the_same_products_still_rank(tmp_path: Path) -> None:
    shop = Shop(tmp_path, own=1.0)
    level = Probabilities(shop.index(), slope=0.0, bias=0.0)
    scores = shop.placement(level, metric="probability").to_score(np.linspace(-5, 5, 50))
    assert (np.diff(scores) > 0).all()
    assert ((scores >= 0) & (scores <= 1)).all()


def test_products_of_any_size_have_a_score() -> None:
    huge = np.array([-1e30, 0.0, 1e30], np.float32)
    assert logistic(2.0, 0.0, share=0.5)(huge).tolist() == [0.0, 0.25, 0.5]


@pytest.mark.parametrize(("n_labels", "n"), [(1, 1), (SAMPLE, SAMPLE), (10_000, SAMPLE)])
def test_every_process_measures_the_same_labels(n_labels: int, n: int) -> None:
    rows = sample_rows(n_labels)
    assert len(rows) == n
    assert (np.diff(rows) > 0).all()
    assert (rows < n_labels).all()
    assert rows.tolist() == sample_rows(n_labels).tolist()

"""Features of candidates, against what one works out by hand."""

import numpy as np
import pytest

from service.core.index.memory_labels import MemoryLabels
from service.core.rerank.features import FEATURES, Batch, Neighbours, Tokens, feature_matrix
from service.core.rerank.knowledge import Knowledge
from service.core.types import Hits

N_TOKENS = 6
KNOWLEDGE = Knowledge(
    frequencies=np.log1p(np.float32([3, 1, 0, 7])),
    partners=np.int32([[1, -1], [0, 3], [-1, -1], [1, -1]]),
    partner_shares=np.float32([[0.5, 0], [1.0, 0.25], [0, 0], [0.1, 0]]),
    tokens=np.int32([[1, 2], [2, 6], [6, 6], [3, 4]]),
    token_weights=np.float32([0, 1, 2, 3, 4, 5, 0]),
    label_weights=np.float32([3, 2, 0, 7]),
)
MEMORY = MemoryLabels(
    offsets=np.int64([0, 1, 3, 3, 4]),
    labels=np.int32([1, 0, 3, 1]),
    values=np.ones(4, np.float32),
)
ADDED = 4
"""A row that the knowledge does not have: a label added to the catalogue."""


def batch(*, rows, logits, tokens=None, neighbours=None) -> Batch:
    taken = None
    if tokens is not None:
        width = max(map(len, tokens))
        ids = np.array([[*each, *[0] * (width - len(each))] for each in tokens], np.int64)
        mask = np.array([[1] * len(each) + [0] * (width - len(each)) for each in tokens])
        taken = Tokens(ids.reshape(len(tokens), width), mask.reshape(len(tokens), width))
    near = None
    if neighbours is not None:
        found = Hits(np.int64(neighbours[0]), np.float32(neighbours[1]))
        near = Neighbours(found, MEMORY, temperature=1.0)
    return Batch(np.int64(rows), np.float32(logits), KNOWLEDGE, taken, near)


def column(name: str, of: Batch) -> list[float]:
    return feature_matrix([name], of)[:, 0].tolist()


ONE = {
    "rows": [[1, 0, 3]],
    "logits": [[2.0, 1.0, 0.0]],
    "tokens": [[0, 2, 3]],
    "neighbours": ([[1, 0, 2, 3]], [[0.9, 0.8, 0.7, 0.6]]),
}
E1, E2, E3 = np.exp(-0.1), np.exp(-0.2), np.exp(-0.3)
WHOLE = 1 + E1 + E2 + E3
P = np.exp([0, -1, -2]) / np.exp([0, -1, -2]).sum()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("logit", [2, 1, 0]),
        ("softmax", P),
        ("gap", [0, -1, -2]),
        ("rank", [0, 1, 2]),
        ("memory_mass_10", [(E1 + E3) / WHOLE, 1 / WHOLE, 1 / WHOLE]),
        ("memory_mass_100", [(E1 + E3) / WHOLE, 1 / WHOLE, 1 / WHOLE]),
        ("memory_nearest", [0.8, 0.9, 0.9]),
        ("memory_first", [0.9, 0.9, 0.9]),
        ("frequency", np.log1p([1, 3, 7])),
        ("cooccurrence", [0.5 * P[1] + 0.1 * P[2], 1.0 * P[0], 0.25 * P[0]]),
        ("label_share", [1, 2 / 3, 3 / 7]),
        ("query_share", [2 / 5, 2 / 5, 3 / 5]),
        ("label_length", [2, 3, 7]),
        ("query_length", [5, 5, 5]),
    ],
)
def test_a_feature_has_the_value_that_one_works_out(name: str, values) -> None:
    assert column(name, batch(**ONE)) == pytest.approx(list(values), abs=1e-6)


def test_masses_count_the_first_neighbours_alone() -> None:
    rows = [[1] * 10 + [0] * 20 + [3] * 10]  # rows of the memory: their labels are 0 and 3; 1; 1
    one = batch(rows=[[0, 1]], logits=[[1, 0]], neighbours=(rows, [[1.0] * 40]))
    assert column("memory_mass_10", one) == [1, 0]
    assert column("memory_mass_30", one) == pytest.approx([1 / 3, 2 / 3])
    assert column("memory_mass_100", one) == pytest.approx([10 / 40, 30 / 40])


def test_neighbours_beyond_the_hundredth_count_for_nothing() -> None:
    rows = [[1] * 100 + [0] * 50]
    one = batch(rows=[[0, 1]], logits=[[1, 0]], neighbours=(rows, [[1.0] * 150]))
    assert column("memory_mass_100", one) == [1, 0]
    assert column("memory_nearest", one) == [1, -1]


def test_a_neighbour_without_the_label_says_so() -> None:
    one = batch(rows=[[2, 1]], logits=[[1, 0]], neighbours=([[0]], [[0.7]]))
    assert column("memory_nearest", one) == pytest.approx([-1, 0.7])
    assert column("memory_mass_10", one) == [0, 1]


@pytest.mark.parametrize("name", FEATURES)
def test_what_is_not_known_is_missing(name: str) -> None:
    needs = FEATURES[name].needs
    bare = batch(rows=ONE["rows"], logits=ONE["logits"])
    assert np.isnan(column(name, bare)).all() == bool({"text", "memory"} & set(needs))
    added = batch(**ONE | {"rows": [[1, ADDED, 3]]})
    assert np.isnan(column(name, added)).tolist() == [False, "labels" in needs, False]


def test_a_query_by_vector_among_texts_lacks_words_alone() -> None:
    two = batch(
        rows=[[1, 0], [1, 0]],
        logits=[[1, 0], [1, 0]],
        tokens=[[2, 3], []],
        neighbours=([[0], [0]], [[0.5], [0.5]]),
    )
    matrix = feature_matrix(list(FEATURES), two)
    of_words = ["text" in feature.needs for feature in FEATURES.values()]
    assert not np.isnan(matrix[:2]).any()
    assert np.isnan(matrix[2:]).all(axis=0).tolist() == of_words
    assert np.isnan(matrix[2:]).any(axis=0).tolist() == of_words


def test_an_answer_does_not_depend_on_its_batch() -> None:
    rng = np.random.default_rng(0)
    n, m, width = 7, 4, 4
    parts = {
        "rows": [rng.permutation(5)[:m] for _ in range(n)],
        "logits": -np.sort(-rng.standard_normal((n, m))),
        "tokens": [rng.integers(0, N_TOKENS + 3, rng.integers(0, 5)).tolist() for _ in range(n)],
    }
    near = [rng.integers(0, 4, width) for _ in range(n)], -np.sort(-rng.random((n, width)))
    whole = feature_matrix(list(FEATURES), batch(**parts, neighbours=near))
    for i in range(n):
        one = {name: part[i : i + 1] for name, part in parts.items()}
        one["neighbours"] = tuple(part[i : i + 1] for part in near)
        alone = feature_matrix(list(FEATURES), batch(**one))
        np.testing.assert_array_equal(alone, whole[i * m : (i + 1) * m])


def test_no_query_is_no_row() -> None:
    none = np.empty((0, 3))
    assert feature_matrix(["logit", "rank"], batch(rows=none, logits=none)).shape == (0, 2)

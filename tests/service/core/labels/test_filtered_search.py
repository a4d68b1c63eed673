"""Filters against brute force: the right rows in the right order, by either plan, in any batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.core.engine import Engine
from service.core.labels.filtered_search import (
    RowFilter,
    plan_kind,
    resolve_filter,
    search_filtered,
)
from service.core.types import FieldValue, LabelFilter
from tests.support.tiny_bundle import DIM, N_LABELS

ALL = np.arange(N_LABELS)
NONE = np.empty(0, np.int64)


class ByNumber:
    """Label `L007` is row 7; the field `odd` says whether a row's number is."""

    def rows_of(self, label_ids: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
        known = sorted({int(i[1:]) for i in label_ids if i[1:].isdigit() and int(i[1:]) < 50})
        return np.array(known, np.int64), [i for i in label_ids if not i[1:].isdigit()]

    def rows_where(self, where: Mapping[str, tuple[FieldValue, ...]]) -> NDArray[np.int64]:
        wanted = [any(bool(row % 2) is value for value in where["odd"]) for row in ALL]
        return ALL[np.array(wanted)]


@pytest.fixture(scope="module")
def engine(tiny_bundle: Path) -> Engine:
    return Engine.open(tiny_bundle, device="cpu")


def _queries(n: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)


@settings(max_examples=60)
@given(
    allowed=st.none() | st.sets(st.integers(0, N_LABELS - 1)),
    denied=st.sets(st.integers(0, N_LABELS - 1)),
    k=st.integers(1, 60),
    n=st.integers(0, 5),
)
def test_a_filtered_answer_is_that_of_brute_force(
    engine: Engine, allowed: set[int] | None, denied: set[int], k: int, n: int
) -> None:
    rows = RowFilter(None if allowed is None else np.array(sorted(allowed), np.int64), NONE)
    rows = rows.without(np.array(sorted(denied), np.int64))
    queries = _queries(n, seed=k)
    hits, plan = search_filtered(engine.index, queries, k, "exact", rows)
    ranked = engine.index.search(queries, N_LABELS, "exact")
    is_open = np.isin(ranked.rows, sorted(set(ALL if allowed is None else allowed) - denied))
    n_open = len(set(ALL if allowed is None else allowed) - denied)
    assert plan.n_open == n_open
    for i in range(n):
        # Some labels of the tiny bundle have one vector: which of such comes first is not said.
        assert len(set(hits.rows[i])) == min(k, n_open)
        assert set(hits.rows[i]) <= set(ranked.rows[i][is_open[i]])
        np.testing.assert_allclose(
            hits.scores[i], ranked.scores[i][is_open[i]][:k], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("effort", ["fast", "balanced", "exact"])
def test_a_filtered_answer_does_not_depend_on_its_batch(engine: Engine, effort: str) -> None:
    rows = RowFilter(None, np.arange(0, N_LABELS, 3))
    queries = _queries(7, seed=3)
    together, plan = search_filtered(engine.index, queries, 5, effort, rows)
    assert plan.kind == "filtered" or plan.n_open < N_LABELS
    for i, query in enumerate(queries):
        alone, _ = search_filtered(engine.index, query[None], 5, effort, rows)
        np.testing.assert_array_equal(alone.rows[0], together.rows[i])
        np.testing.assert_array_equal(alone.scores[0], together.scores[i])


def test_few_open_rows_are_scored_and_many_are_searched_for() -> None:
    assert plan_kind(1_000_000, 100, 10) == "exact"
    assert plan_kind(1_000_000, 900_000, 10) == "filtered"
    assert plan_kind(1_000_000, 0, 10) == "exact"


def test_ids_and_metadata_become_rows_and_strangers_are_counted() -> None:
    wanted = LabelFilter(("L001", "L002", "L003", "nobody"), ("L003", "x"), {"odd": (True,)})
    rows = resolve_filter(wanted, ByNumber())
    assert rows.allowed is not None
    assert rows.allowed.tolist() == [1]
    assert rows.unknown == 2


def test_a_filter_that_lets_nothing_through_gets_an_empty_answer(engine: Engine) -> None:
    hits, plan = search_filtered(engine.index, _queries(2, 1), 5, "fast", RowFilter(NONE, NONE))
    assert hits.rows.shape == hits.scores.shape == (2, 0)
    assert (plan.kind, plan.n_open) == ("exact", 0)

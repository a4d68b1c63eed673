"""The learned graph against a slow and obvious twin, and what a broken bundle says.

What every index promises is in tests/contract; that it gives what training measured, in
tests/models/methods/test_elias.py.
"""

import json

import numpy as np
import pytest

from service.bundle.manifest import IndexInfo
from service.core.index.learned_graph import Graph, LearnedGraphIndex, open_learned_graph
from service.errors import BundleMismatch

N_LABELS, N_CLUSTERS, WIDTH, DIM = 50, 7, 16, 8
FILES = ["graph.json", "clusters.npy", "bias.npy", "edges.npy", "weights.npy", "labels.npy"]
EFFORTS = {
    "narrow": {"beam": 1, "shortlist": 5},
    "wide": {"beam": 3, "shortlist": 12},
    "all": {"beam": 99, "shortlist": 1000},
    "exact": {},
}


def made_up(seed, empty=0):
    """A graph whose clusters hold labels without doubles; the last `empty` places hold none."""
    rng = np.random.default_rng(seed)
    edges = np.stack([rng.permutation(N_LABELS)[:WIDTH] for _ in range(N_CLUSTERS)])
    weights = rng.random(edges.shape)
    weights[rng.random(edges.shape) < 0.3] = 1.0
    if empty:
        edges[:, -empty:], weights[:, -empty:] = N_LABELS, 0.0
    return Graph(
        clusters=rng.standard_normal((N_CLUSTERS, DIM)).astype(np.float32),
        bias=rng.standard_normal(N_CLUSTERS).astype(np.float32),
        edges=edges.astype(np.int32),
        weights=weights.astype(np.float32),
        labels=rng.standard_normal((N_LABELS, DIM)).astype(np.float32),
        alpha=3.0,
        logit_bias=-2.0,
    )


def queries_of(seed, n=30):
    return np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)


def twin(graph, query, beam, size):
    """Score of every label that a query reaches, label by label."""
    logits = graph.clusters @ query + graph.bias
    shares = np.exp(logits) / np.exp(logits).sum()
    paths = {}
    for cluster in np.argsort(-logits)[:beam]:
        score = min(1.0, graph.alpha * shares[cluster])
        for label, weight in zip(graph.edges[cluster], graph.weights[cluster], strict=True):
            if label < N_LABELS:
                paths[int(label)] = max(paths.get(int(label), 0.0), score * weight)
    listed = sorted(paths, key=lambda label: -paths[label])[:size]
    return {
        label: paths[label] / (1 + np.exp(-(graph.labels[label] @ query + graph.logit_bias)))
        for label in listed
    }


@pytest.mark.parametrize("effort", list(EFFORTS))
@pytest.mark.parametrize("empty", [0, 6])
def test_scores_are_those_of_the_twin(effort, empty):
    graph, queries = made_up(1, empty), queries_of(2)
    params = EFFORTS[effort] or {"beam": N_CLUSTERS, "shortlist": N_LABELS}
    hits = LearnedGraphIndex(graph, EFFORTS).search(queries, 4, effort)
    for query, rows, scores in zip(queries, hits.rows, hits.scores, strict=True):
        expected = twin(graph, query, params["beam"], params["shortlist"])
        best = sorted(expected.values(), reverse=True)[:4]
        # Equal paths at the shortlist's end may be others' there, never fewer.
        tied = effort in ("narrow", "wide")
        if not tied:
            assert scores == pytest.approx(best, abs=1e-6)
        named = {row: expected[row] for row in rows.tolist() if row in expected}
        assert len(named) == 4 or tied
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
            if row in expected:
                assert score == pytest.approx(expected[row], abs=1e-6)


def test_more_labels_than_the_beam_reaches_are_answered_from_all_clusters():
    graph, queries = made_up(3, empty=10), queries_of(4)
    index = LearnedGraphIndex(graph, EFFORTS)
    narrow, exact = (index.search(queries, 40, name) for name in ("narrow", "exact"))
    assert np.array_equal(narrow.rows, exact.rows)
    assert np.array_equal(narrow.scores, exact.scores)


def test_labels_that_no_edge_reaches_come_last_with_score_0_in_row_order():
    graph = made_up(5, empty=12)
    reached = set(graph.edges[graph.edges < N_LABELS].tolist())
    hits = LearnedGraphIndex(graph, EFFORTS).search(queries_of(6), N_LABELS, "exact")
    left = sorted(set(range(N_LABELS)) - reached)
    assert left
    assert np.array_equal(hits.rows[:, -len(left) :], [left] * 30)
    assert (hits.scores[:, -len(left) :] == 0).all()


def test_equal_scores_are_in_row_order():
    graph = made_up(7)
    graph.labels[:] = graph.labels[0]
    graph.weights[:] = 1.0
    for effort in ("all", "exact"):
        hits = LearnedGraphIndex(graph, EFFORTS).search(queries_of(8), 20, effort)
        same = hits.scores[:, 1:] == hits.scores[:, :-1]
        assert same.any()
        assert (np.diff(hits.rows, axis=1)[same] > 0).all()


def test_a_query_of_zeros_and_one_that_is_enormous_have_answers():
    queries = np.stack([np.zeros(DIM), np.full(DIM, 1e4)]).astype(np.float32)
    hits = LearnedGraphIndex(made_up(9), EFFORTS).search(queries, 10, "wide")
    assert np.isfinite(hits.scores).all()
    assert ((hits.scores >= 0) & (hits.scores <= 1)).all()


def test_a_large_batch_is_searched_in_parts_of_bounded_size(monkeypatch):
    index, queries = LearnedGraphIndex(made_up(1), EFFORTS), queries_of(2, 70)
    whole = [index.search(queries, 6, effort) for effort in EFFORTS]
    monkeypatch.setattr("service.core.index.learned_graph._CELLS_AT_ONCE", 100)
    for effort, expected in zip(EFFORTS, whole, strict=True):
        hits = index.search(queries, 6, effort)
        assert np.array_equal(hits.rows, expected.rows)
        assert np.array_equal(hits.scores, expected.scores)


def written(folder, **changes):
    graph = made_up(1)
    about = {"alpha": 3.0, "logit_bias": -2.0}
    arrays = [graph.clusters, graph.bias, graph.edges, graph.weights, graph.labels]
    for name, array in zip(FILES[1:], arrays, strict=True):
        np.save(folder / name, changes.get(name.removesuffix(".npy"), array))
    (folder / FILES[0]).write_text(changes.get("settings", json.dumps(about)))
    return folder


def info(n_rows=N_LABELS):
    return IndexInfo(
        kind="learned-graph", files=FILES, metric="probability", params={}, n_rows=n_rows
    )


def test_files_give_the_index_that_they_describe(tmp_path):
    index = open_learned_graph(written(tmp_path), info(), DIM, EFFORTS)
    expected = LearnedGraphIndex(made_up(1), EFFORTS)
    ours, theirs = (each.search(queries_of(2), 9, "wide") for each in (index, expected))
    assert np.array_equal(ours.rows, theirs.rows)
    assert np.array_equal(ours.scores, theirs.scores)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"settings": "{}"}, "expected alpha and logit_bias"),
        ({"clusters": np.zeros((N_CLUSTERS, 3), np.float32)}, "has shape"),
        ({"bias": np.zeros(N_CLUSTERS)}, "expected a list of float32"),
        ({"edges": np.full((N_CLUSTERS, WIDTH), N_LABELS + 1, np.int32)}, "names rows"),
        ({"edges": np.full((N_CLUSTERS, WIDTH), N_LABELS, np.int32)}, "leaves empty"),
        ({"weights": np.full((N_CLUSTERS, WIDTH), 1.5, np.float32)}, r"outside \[0, 1\]"),
        ({"labels": np.full((N_LABELS, DIM), np.nan, np.float32)}, "NaN or infinite"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(tmp_path, changes, sentence):
    with pytest.raises(BundleMismatch, match=sentence):
        open_learned_graph(written(tmp_path, **changes), info(), DIM, EFFORTS)


def test_an_effort_without_its_parameters_is_refused(tmp_path):
    with pytest.raises(BundleMismatch, match="needs beam and shortlist"):
        open_learned_graph(written(tmp_path), info(), DIM, {"fast": {"beam": 3}})

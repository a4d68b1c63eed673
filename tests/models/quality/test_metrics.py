"""models.quality.metrics: a hand-worked example, a slow obvious twin of each figure, untouched
inputs."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from models.quality.metrics import (
    evaluate_ranking,
    expected_calibration_error,
    inverse_propensity,
    label_bands,
    ndcg_at_k,
    precision_at_k,
    psp_at_k,
    recall_at_k,
    relevant,
    remove_filtered,
)

# ---- the slow obvious twins: lists and sets, one query at a time


def slow_precision(ranked, truth, k):
    return mean(len(set(row[:k]) & true) / k for row, true in pairs(ranked, truth))


def slow_recall(ranked, truth, k):
    return mean(len(set(row[:k]) & true) / len(true) for row, true in pairs(ranked, truth))


def slow_ndcg(ranked, truth, k):
    def one(row, true):
        gain = sum(1 / math.log2(i + 2) for i, label in enumerate(row[:k]) if label in true)
        return gain / sum(1 / math.log2(i + 2) for i in range(min(k, len(true))))

    return mean(one(row, true) for row, true in pairs(ranked, truth))


def slow_psp(ranked, truth, weights, k):
    got = best = 0.0
    for row, true in pairs(ranked, truth):
        got += sum(weights[label] for label in row[:k] if label in true)
        best += sum(sorted((weights[label] for label in true), reverse=True)[:k])
    return got / best


def pairs(ranked, truth):
    return [(row, true) for row, true in zip(ranked, truth, strict=True) if true]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def matrix(truth, n_labels):
    dense = np.zeros((len(truth), n_labels), dtype=np.float32)
    for row, true in enumerate(truth):
        dense[row, list(true)] = 1.0
    return csr_array(dense)


@st.composite
def rankings(draw):
    """(ranked lists with padding, sets of true labels with at least one in all, n_labels)."""
    n_labels = draw(st.integers(1, 12))
    width = draw(st.integers(1, n_labels))
    n = draw(st.integers(1, 6))
    ranked = []
    for _ in range(n):
        labels = draw(st.permutations(range(n_labels)))[: draw(st.integers(0, width))]
        ranked.append(list(labels) + [-1] * (width - len(labels)))
    truth = [draw(st.sets(st.integers(0, n_labels - 1), max_size=5)) for _ in range(n)]
    truth[draw(st.integers(0, n - 1))].add(draw(st.integers(0, n_labels - 1)))
    return ranked, truth, n_labels


@given(drawn=rankings(), data=st.data())
def test_each_figure_equals_its_slow_twin(drawn, data):
    ranked, truth, n_labels = drawn
    k = data.draw(st.integers(1, len(ranked[0])))
    weights = np.array(data.draw(st.lists(st.floats(1, 9), min_size=n_labels, max_size=n_labels)))
    fast = np.array(ranked), matrix(truth, n_labels)
    assert precision_at_k(*fast, k) == pytest.approx(slow_precision(ranked, truth, k))
    assert recall_at_k(*fast, k) == pytest.approx(slow_recall(ranked, truth, k))
    assert ndcg_at_k(*fast, k) == pytest.approx(slow_ndcg(ranked, truth, k))
    assert psp_at_k(*fast, weights, k) == pytest.approx(slow_psp(ranked, truth, weights, k))


@given(drawn=rankings(), data=st.data())
def test_the_whole_evaluation_equals_the_slow_twins_in_every_band(drawn, data):
    ranked, truth, n_labels = drawn
    ranked = [row + [-1] * (100 - len(row)) for row in ranked]
    counts = data.draw(st.lists(st.integers(0, 20), min_size=n_labels, max_size=n_labels))
    found = evaluate_ranking(np.array(ranked), matrix(truth, n_labels), counts, 50, a=0.6, b=2.6)
    weights = inverse_propensity(counts, 50, 0.6, 2.6)
    for k in (1, 3, 5):
        assert found[f"p{k}"] == pytest.approx(100 * slow_precision(ranked, truth, k))
        assert found[f"ndcg{k}"] == pytest.approx(100 * slow_ndcg(ranked, truth, k))
        assert found[f"psp{k}"] == pytest.approx(100 * slow_psp(ranked, truth, weights, k))
    for k in (10, 100):
        assert found[f"r{k}"] == pytest.approx(100 * slow_recall(ranked, truth, k))
    bands = label_bands(counts)
    for number, name in enumerate(("head", "torso", "tail")):
        kept = [{label for label in true if bands[label] == number} for true in truth]
        check_band(found, name, ranked, kept)


def check_band(found, name, ranked, truth):
    if not any(truth):
        assert not any(figure.startswith(name) for figure in found)
        return
    for k in (1, 3, 5):
        expected = 100 * slow_precision(ranked, truth, k)
        assert found[f"{name}_p{k}"] == pytest.approx(expected)
    assert found[f"{name}_ndcg5"] == pytest.approx(100 * slow_ndcg(ranked, truth, 5))
    for k in (10, 100):
        assert found[f"{name}_r{k}"] == pytest.approx(100 * slow_recall(ranked, truth, k))


# ---- worked by hand


def test_a_hand_worked_example():
    """Three queries over five labels, ranked to depth 3; the third has no label and is skipped.

    Query 0: true {0, 2}, ranked 2 4 0: hits at ranks 1 and 3.
    Query 1: true {1}, ranked 3 1 (nothing): a hit at rank 2.
    P@1 = (1 + 0) / 2; P@3 = (2/3 + 1/3) / 2. R@1 = (1/2 + 0) / 2; R@3 = (1 + 1) / 2.
    nDCG@3: (1 + 1/2) / (1 + 0.63093) = 0.91972 and 0.63093 / 1, mean 0.77533.
    PSP@1 with weights 4, 3, 2, 1, 1: got 2 + 0, best 4 + 3: 2/7. PSP@3: (2 + 4 + 3) / (4 + 2 + 3).
    """
    ranked = np.array([[2, 4, 0], [3, 1, -1], [0, 1, 2]])
    truth = matrix([{0, 2}, {1}, set()], 5)
    weights = np.array([4.0, 3.0, 2.0, 1.0, 1.0])
    assert precision_at_k(ranked, truth, 1) == 0.5
    assert precision_at_k(ranked, truth, 3) == 0.5
    assert recall_at_k(ranked, truth, 1) == 0.25
    assert recall_at_k(ranked, truth, 3) == 1.0
    assert round(ndcg_at_k(ranked, truth, 3), 5) == 0.77533
    assert psp_at_k(ranked, truth, weights, 1) == pytest.approx(2 / 7)
    assert psp_at_k(ranked, truth, weights, 3) == 1.0


def test_inverse_propensity_follows_the_formula():
    """N = 1000, A = 0.55, B = 1.5: C = (ln 1000 - 1) 2.5^0.55 = 9.7787; n = 3: 1 + C 4.5^-0.55."""
    assert inverse_propensity([3], 1000)[0] == pytest.approx(1 + 9.7787 * 4.5**-0.55, abs=1e-4)
    assert inverse_propensity([0], 1000)[0] > inverse_propensity([1], 1000)[0]


def test_bands_split_positives_into_thirds_with_ties_by_row():
    """Nine positives, one each: labels with 0 to 2 before them are head, 3 to 5 torso."""
    assert label_bands([1] * 9).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert label_bands([0, 1, 100]).tolist() == [2, 2, 0]
    assert label_bands([0, 0]).tolist() == [2, 2]


# ---- what counts as a label


def test_stored_zeros_are_no_labels_and_repeats_count_once():
    stored = csr_array((np.ones(3), [1, 1, 2], [0, 3]), shape=(1, 3))
    stored.data[2] = 0.0
    assert recall_at_k(np.array([[1, 0, 2]]), stored, 1) == 1.0


def test_relevant_marks_true_labels_in_their_place():
    truth = csr_array(np.array([[0, 1, 1], [0, 0, 0]], np.float32))
    assert relevant(np.array([[1, 0], [2, 1]]), truth).tolist() == [[True, False], [False, False]]


def test_the_size_of_a_relevance_does_not_matter():
    graded = csr_array([[0.5, 7.0, 0.0]])
    ranked = np.array([[0, 2, 1]])
    assert ndcg_at_k(ranked, graded, 2) == ndcg_at_k(ranked, graded.astype(bool), 2)


def test_inputs_are_left_untouched():
    ranked = np.array([[2, 1, 0], [0, 2, -1], [1, 0, -1]])
    truth = csr_array((np.array([1.0, 0.0, 3.0, 1.0]), [2, 1, 2, 2], [0, 2, 4, 4]), shape=(3, 3))
    counts, filtered = np.array([3, 2, 1]), np.array([[0, 1]])
    weights, outcomes = np.array([0.2, 0.9]), np.array([0, 1])
    inputs = (ranked, truth.data, truth.indices, truth.indptr, counts, filtered, weights, outcomes)
    before = [array.copy() for array in inputs]
    evaluate_ranking(ranked, truth, counts, 10)
    remove_filtered(ranked, filtered)
    expected_calibration_error(weights, outcomes)
    after = (ranked, truth.data, truth.indices, truth.indptr, counts, filtered, weights, outcomes)
    assert all((old == new).all() for old, new in zip(before, after, strict=True))


def test_frozen_inputs_are_enough():
    ranked = np.array([[0, 1]])
    ranked.setflags(write=False)
    assert remove_filtered(ranked, np.array([[0, 0]])).tolist() == [[1, -1]]


def test_a_ranking_that_found_nothing_scores_nothing():
    assert precision_at_k(np.array([[-1, -1]]), csr_array([[1, 0]]), 2) == 0.0
    with pytest.raises(ValueError, match="0 columns and k is 1"):
        precision_at_k(np.zeros((1, 0), dtype=np.int64), csr_array([[1, 0]]), 1)


# ---- what is refused


@pytest.mark.parametrize(
    ("ranked", "sentence"),
    [
        ([[1, 1]], "a label twice"),
        ([[-1, 1]], "padding belongs at the end"),
        ([[0, 3]], "from 0 to 2"),
        ([[0, -2]], "from 0 to 2"),
        ([[0.0, 1.0]], "whole-number"),
        ([0, 1], "whole-number"),
        ([[0, 1], [1, 0]], "2 rows and truth 1"),
    ],
)
def test_rankings_that_are_none_are_refused(ranked, sentence):
    with pytest.raises(ValueError, match=sentence):
        precision_at_k(np.array(ranked), csr_array([[1, 0, 0]]), 1)


def test_a_cut_off_beyond_the_ranking_is_refused_unless_all_labels_are_ranked():
    truth = csr_array([[1, 0, 0]])
    with pytest.raises(ValueError, match="2 columns and k is 3"):
        recall_at_k(np.array([[1, 2]]), truth, 3)
    assert recall_at_k(np.array([[1, 2, 0]]), truth, 100) == 1.0
    assert precision_at_k(np.array([[1, 2, 0]]), truth, 10) == 0.1
    with pytest.raises(ValueError, match="k is 0"):
        recall_at_k(np.array([[1, 2]]), truth, 0)


def test_truth_without_any_label_is_refused():
    with pytest.raises(ValueError, match="no row of truth has a label"):
        precision_at_k(np.array([[0]]), csr_array((1, 2)), 1)


def test_counts_and_weights_of_other_labels_are_refused():
    ranked, truth = np.array([[0, 1]]), csr_array([[1, 0]])
    with pytest.raises(ValueError, match="one count per label"):
        evaluate_ranking(ranked, truth, [1, 2, 3], 10)
    with pytest.raises(ValueError, match="one weight per label"):
        psp_at_k(ranked, truth, np.ones(3), 1)
    with pytest.raises(ValueError, match="at least 3 training points"):
        inverse_propensity([1], 2)
    with pytest.raises(ValueError, match="negative count"):
        inverse_propensity([-1], 10)


def test_a_band_without_a_query_has_no_figures():
    found = evaluate_ranking(np.array([[0, 1]]), csr_array([[1, 0]]), [5, 1], 10)
    assert json.loads(json.dumps(found)) == found
    assert found["p1"] == found["head_p1"] == 100.0
    assert not any(name.startswith("tail") for name in found)


# ---- filters


@given(drawn=rankings(), data=st.data())
def test_filtering_equals_its_slow_twin(drawn, data):
    ranked, _, n_labels = drawn
    pair = st.tuples(st.integers(0, len(ranked) - 1), st.integers(0, n_labels + 3))
    listed = data.draw(st.lists(pair, max_size=8))
    expected = []
    for row, labels in enumerate(ranked):
        kept = [label for label in labels if label >= 0 and (row, label) not in listed]
        expected.append(kept + [-1] * (len(labels) - len(kept)))
    filtered = remove_filtered(np.array(ranked), np.array(listed, dtype=np.int64).reshape(-1, 2))
    assert filtered.tolist() == expected


def test_filter_pairs_of_rows_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="outside the 1 rows"):
        remove_filtered(np.array([[0, 1]]), np.array([[1, 0]]))


# ---- calibration


def test_a_calibrated_answer_has_no_error_and_a_sure_wrong_one_has_all():
    assert expected_calibration_error([0.5, 0.5], [0, 1]) == 0.0
    assert expected_calibration_error([1.0, 1.0], [0, 0]) == 1.0


@given(data=st.data(), n_bins=st.integers(1, 20))
def test_calibration_error_does_not_depend_on_the_order(data, n_bins):
    answer = st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), st.booleans())
    answers = data.draw(st.lists(answer, min_size=1, max_size=30))
    shuffled = data.draw(st.permutations(answers))
    first, second = (
        expected_calibration_error(*zip(*listed, strict=True), n_bins=n_bins)
        for listed in (answers, shuffled)
    )
    assert first == pytest.approx(second)
    assert 0 <= first <= 1


@given(st.lists(st.tuples(st.integers(0, 10**6), st.booleans()), min_size=1, max_size=60))
def test_calibration_error_equals_its_slow_twin_where_there_are_no_ties(answers):
    """Without ties the bins are runs of the sorted answers, as even as whole numbers allow."""
    answers = sorted({number: won for number, won in answers}.items())
    n, n_bins = len(answers), 7
    bins = [[] for _ in range(n_bins)]
    for place, answer in enumerate(answers):
        bins[place * n_bins // n].append(answer)
    expected = sum(
        abs(sum(number / 10**6 for number, _ in part) - sum(won for _, won in part)) / n
        for part in bins
    )
    stated, won = [number / 10**6 for number, _ in answers], [won for _, won in answers]
    assert expected_calibration_error(stated, won, n_bins=n_bins) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("stated", "observed", "n_bins"),
    [
        ([], [], 15),
        ([0.5], [1, 0], 15),
        ([[0.5]], [[1]], 15),
        ([1.5], [1], 15),
        ([math.nan], [1], 15),
        ([0.5], [0.5], 15),
        ([0.5], [1], 0),
    ],
)
def test_calibration_of_nonsense_is_refused(stated, observed, n_bins):
    with pytest.raises(ValueError, match=r"probabilities|n_bins"):
        expected_calibration_error(stated, observed, n_bins)

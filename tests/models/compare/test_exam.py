"""The exam: filtered pairs cost nobody a place, and latency is of single texts."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array

from models.compare.exam import TIMED_QUERIES, WARM_UP_QUERIES, Exam
from models.data.dataset import Dataset, LabelCatalogue, Points
from models.errors import ComparisonError

N_LABELS = 130


def points(labels):
    names = [f"text {row}" for row in range(len(labels))]
    matrix = csr_array((len(labels), N_LABELS), dtype=np.float32).tolil()
    for row, label in enumerate(labels):
        matrix[row, label] = 1.0
    return Points(names, names, [""] * len(labels), csr_array(matrix.tocsr()))


@pytest.fixture
def exam():
    names = [f"L{row}" for row in range(N_LABELS)]
    data = Dataset(
        name="shelf",
        train=points([0, 1, 2, 3]),
        test=points([4, 5]),
        labels=LabelCatalogue(names, names, [""] * N_LABELS),
        train_filter=None,
        test_filter=np.array([[0, 7], [0, 8]]),
        sha256="ab" * 32,
    )
    return Exam(data, "title", 0.55, 1.5)


def ranking(firsts, k):
    """Each query's labels: its own first ones, then all others in order."""
    rows = [
        [*first, *(label for label in range(N_LABELS) if label not in first)][:k]
        for first in firsts
    ]
    return np.array(rows)


def test_filtered_pairs_are_taken_out_of_a_ranking_that_is_long_enough(exam):
    asked = []

    def rank(part, k):
        asked.append(k)
        return ranking([[7, 8, 4], [7, 5]][part], k)

    ranked = exam.answers(rank, "fake")
    assert asked == [102]  # a hundred, and the two that may be taken out
    metrics = exam.score(ranked).metrics
    assert metrics["p1"] == 50.0  # 4 moves up to the first place; 7 stays above 5
    assert metrics["r100"] == 100.0
    assert exam.right(ranked) == {"p1": "10", "p5": "11"}


def test_more_labels_than_there_are_are_never_asked_for(exam):
    crowded = np.stack([np.zeros(60, np.int64), np.arange(60) + 60], axis=1)
    exam = replace(exam, dataset=replace(exam.dataset, test_filter=crowded))
    ranked = exam.answers(lambda part, k: ranking([[4], [5]][part], k), "fake")
    assert exam.score(ranked).metrics["p1"] == 100.0


def test_one_text_at_a_time_is_timed_after_a_warm_up(exam):
    asked = []
    p50, p99 = exam.time_queries(lambda text, k: asked.append((text, k)) or [])
    assert len(asked) == WARM_UP_QUERIES + TIMED_QUERIES
    assert asked[:3] == [("text 0", 10), ("text 1", 10), ("text 0", 10)]
    assert 0 <= p50 <= p99


def test_data_without_a_test_split_cannot_be_compared_on(exam):
    bare = replace(exam, dataset=replace(exam.dataset, test=None, test_filter=None))
    with pytest.raises(ComparisonError, match="shelf has no tst file"):
        _ = bare.subject

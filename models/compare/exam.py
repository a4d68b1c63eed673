"""The exam of a comparison: it measures every system in the same way, on the same test points.

Quality is measured on the test split. Latency is measured in this process, for one text at a time:
from the text to the ids of ten labels. bench.py puts each system through the exam.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.compare.record import ComparedData
from models.config import Fields
from models.data.dataset import Dataset, Points, point_texts
from models.errors import ComparisonError
from models.progress import track
from models.quality.evaluate import Part, Score, score
from models.quality.groups import Groups
from models.quality.metrics import (
    relevant,
    remove_filtered,
)
from models.quality.ranking import spare

DEPTH: Final = 100
"""Labels in a ranking, for R@100."""
TIMED_LABELS: Final = 10
"""Labels in an answer whose latency is measured."""
WARM_UP_QUERIES: Final = 50
TIMED_QUERIES: Final = 500
"""A choice: five queries lie above the p99, and a slow peer takes some seconds."""
_BATCH: Final = 256


@dataclass(frozen=True)
class Exam:
    """A data set with a test split, the fields of its texts, and the propensity constants."""

    dataset: Dataset
    fields: Fields
    propensity_a: float
    propensity_b: float

    @property
    def subject(self) -> ComparedData:
        """The description of data, text and constants that the record of the comparison holds."""
        data = self.dataset
        return ComparedData(
            data=data.name,
            data_sha256=data.sha256,
            fields=self.fields,
            n_train=len(data.train),
            n_test=len(self.test),
            n_labels=len(data.labels),
            propensity_a=self.propensity_a,
            propensity_b=self.propensity_b,
            filtered=0 if data.test_filter is None else len(data.test_filter),
        )

    @property
    def test(self) -> Points:
        """The test points. Raises ComparisonError where there are none."""
        if self.dataset.test is None:
            raise ComparisonError(f"{self.dataset.name} has no tst file to compare on")
        return self.dataset.test

    @cached_property
    def part(self) -> Part:
        """The test points with their series, which the titles of all training points decide."""
        return Part.test(self.dataset, self.fields)

    def score(self, ranked: NDArray[np.int64]) -> Score:
        """The figures of label rows (n, DEPTH) for the test points."""
        a, b = self.propensity_a, self.propensity_b
        return score(ranked, self.part, self.dataset, a, b)

    @property
    def train_texts(self) -> list[str]:
        """The texts of all training points."""
        return point_texts(self.dataset.train, self.fields)

    @property
    def test_texts(self) -> list[str]:
        """The texts of the test points."""
        return point_texts(self.test, self.fields)

    def answers(
        self, rank: Callable[[slice, int], NDArray[np.int64]], what: str
    ) -> NDArray[np.int64]:
        """A system's label rows (n, DEPTH) for the test points, best first, without filter pairs.

        `rank(part, k)` returns the label rows (n, k) of a slice of the test points, best first; k
        is DEPTH and as many more as the filter may take out of one ranking. `what` names the system
        in the progress bar.
        """
        n_labels, filtered = len(self.dataset.labels), self.dataset.test_filter
        k = min(DEPTH + spare(filtered), n_labels)
        starts = range(0, len(self.test), _BATCH)
        parts = [
            rank(slice(start, start + _BATCH), k)
            for start in track(starts, len(starts), f"{what} ranks the test points")
        ]
        ranked = np.concatenate(parts)
        if filtered is not None:
            ranked = np.asarray(remove_filtered(ranked, filtered), np.int64)
        return ranked[:, :DEPTH]

    def right(self, ranked: NDArray[np.int64]) -> dict[str, str]:
        """The number of right labels among the first 1 and 5 of each ranking.

        It is a digit a point; points without a label have none.
        """
        hits = relevant(ranked[:, :5], self.test.labels) & (ranked[:, :5] >= 0)
        hits = hits[np.diff(self.test.labels.indptr) > 0]
        return {f"p{k}": "".join(map(str, hits[:, :k].sum(axis=1).tolist())) for k in (1, 5)}

    @property
    def groups(self) -> Groups:
        """The series of the test points with a label."""
        return self.part.groups[np.diff(self.test.labels.indptr) > 0]

    def time_queries(self, answer: Callable[[str, int], Sequence[str]]) -> tuple[float, float]:
        """Median and 99th percentile in ms of `answer(text, k)`, which returns k label ids.

        k is 10, or all labels where there are fewer. A few queries warm up first.
        """
        k = min(TIMED_LABELS, len(self.dataset.labels))
        n_texts = WARM_UP_QUERIES + TIMED_QUERIES
        texts = list(itertools.islice(itertools.cycle(self.test_texts), n_texts))
        for text in texts[:WARM_UP_QUERIES]:
            answer(text, k)
        latencies_ms = []
        for text in texts[WARM_UP_QUERIES:]:
            start_s = time.perf_counter()
            answer(text, k)
            latencies_ms.append(1000 * (time.perf_counter() - start_s))
        p50, p99 = np.percentile(latencies_ms, (50, 99))
        return round(float(p50), 4), round(float(p99), 4)

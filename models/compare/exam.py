"""The test that every system of a comparison sits: the same points, filter, weights and questions.

Quality is of the public test split; latency is of one text at a time, from the text to the ids of
ten labels, in this process. Who sits it is compare.py.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.compare.record import ComparedData
from models.data.dataset import Dataset, Fields, Points, point_texts
from models.errors import ComparisonError
from models.progress import track
from models.quality.evaluate import flatten
from models.quality.metrics import evaluate_ranking, remove_filtered
from models.quality.ranking import spare

DEPTH: Final = 100
ASKED: Final = 10
WARM_UP: Final = 50
TIMED: Final = 500
_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True)
class Exam:
    """A data set with a test split, the text that is read of it, and the propensity constants."""

    dataset: Dataset
    fields: Fields
    propensity_a: float
    propensity_b: float

    @property
    def subject(self) -> ComparedData:
        """What the comparison is on."""
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

    @property
    def train_texts(self) -> list[str]:
        """The texts of all training points."""
        return point_texts(self.dataset.train, self.fields)

    @property
    def test_texts(self) -> list[str]:
        """The texts of the test points."""
        return point_texts(self.test, self.fields)

    def score(self, rank: Callable[[slice, int], NDArray[np.int64]], what: str) -> dict[str, float]:
        """Figures in percent of a system that ranks a slice of the test points, best first.

        It is asked for a hundred labels and as many more as the filter may take out.
        """
        n_labels, filtered = len(self.dataset.labels), self.dataset.test_filter
        asked = min(DEPTH + spare(filtered), n_labels)
        starts = range(0, len(self.test), _AT_ONCE)
        parts = [
            rank(slice(start, start + _AT_ONCE), asked)
            for start in track(starts, len(starts), f"{what} ranks the test points")
        ]
        ranked = np.concatenate(parts)
        if filtered is not None:
            ranked = np.asarray(remove_filtered(ranked, filtered), np.int64)
        quality = evaluate_ranking(
            ranked[:, :DEPTH],
            self.test.labels,
            np.bincount(self.dataset.train.labels.indices, minlength=n_labels),
            len(self.dataset.train),
            self.propensity_a,
            self.propensity_b,
        )
        return {name: round(value, 3) for name, value in flatten(quality).items()}

    def time_queries(self, answer: Callable[[str, int], Sequence[str]]) -> tuple[float, float]:
        """Median and 99th percentile in ms of answering one test text with ten label ids."""
        k = min(ASKED, len(self.dataset.labels))
        texts = list(itertools.islice(itertools.cycle(self.test_texts), WARM_UP + TIMED))
        for text in texts[:WARM_UP]:
            answer(text, k)
        taken_ms = []
        for text in texts[WARM_UP:]:
            started = time.perf_counter()
            answer(text, k)
            taken_ms.append(1000 * (time.perf_counter() - started))
        p50, p99 = np.percentile(taken_ms, (50, 99))
        return round(float(p50), 4), round(float(p99), 4)

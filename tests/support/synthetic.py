"""Makes up a text data set of any size from a seed.

Labels have Zipf frequencies and form clusters. A label has words of its own and shares one word
with its cluster. A point's title mixes some words of its labels with noise, so that a small model
can learn it. The words are pronounceable nonsense, so scores say nothing about real text.
"""

import hashlib
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from models.data.dataset import Dataset, LabelCatalogue, Points

Ints = NDArray[np.int64]

MAX_LABELS_PER_POINT = 5
SHARE_IN_CLUSTER = 0.8  # of a point's further labels; the rest are drawn from all
WORDS_PER_LABEL = 3
WORDS_SHOWN = 2  # of each label's own words, in a point's title
NOISE_WORDS = 1000


def synthetic_dataset(
    n_labels: int,
    n_train: int,
    n_test: int,
    seed: int,
    *,
    labels_per_cluster: int = 20,
    noise_words_per_point: int = 3,
    zipf_exponent: float = 1.0,
) -> Dataset:
    """Make a data set. The same arguments give the same data.

    With n_train >= n_labels every label has a training point. Raises ValueError without labels or
    training points.

    >>> dataset = synthetic_dataset(n_labels=4, n_train=6, n_test=0, seed=1)
    >>> len(dataset.labels), len(dataset.train), dataset.test, dataset.train.labels.shape
    (4, 6, None, (6, 4))
    """
    if n_labels < 1 or n_train < 1 or n_test < 0:
        raise ValueError(
            f"{n_labels} labels, {n_train} training and {n_test} test points; give at least one "
            "label and one training point"
        )
    rng = np.random.default_rng(seed)
    world = _World.draw(rng, n_labels, labels_per_cluster, zipf_exponent)
    train_labels = world.draw_labels(rng, n_train)
    if n_train >= n_labels:
        train_labels = _cover(rng, train_labels)
    train = world.describe(rng, "train", train_labels, noise_words_per_point)
    test = world.describe(rng, "test", world.draw_labels(rng, n_test), noise_words_per_point)
    labels = world.catalogue()
    return Dataset(
        name=f"synthetic-{n_labels}-{seed}",
        train=train,
        test=test if n_test else None,
        labels=labels,
        train_filter=None,
        test_filter=None,
        sha256=_fingerprint(labels, train, test),
    )


@dataclass(frozen=True, slots=True)
class _World:
    """The labels' words and frequencies. A cluster is a run of neighbouring label rows."""

    words: NDArray[np.object_]  # noise words, then one per cluster, then each label's own
    ends: NDArray[np.float64]  # (n_labels + 1,) cumulative frequency, from 0 to 1
    labels_per_cluster: int

    @classmethod
    def draw(
        cls, rng: np.random.Generator, n_labels: int, labels_per_cluster: int, exponent: float
    ) -> Self:
        frequency = rng.permutation(np.arange(1.0, n_labels + 1) ** -exponent)
        ends = np.concatenate(([0.0], np.cumsum(frequency) / frequency.sum()))
        n_clusters = -(-n_labels // labels_per_cluster)
        words = _spell(rng, NOISE_WORDS + n_clusters + n_labels * WORDS_PER_LABEL)
        return cls(words, ends, labels_per_cluster)

    @property
    def n_labels(self) -> int:
        return len(self.ends) - 1

    def draw_labels(self, rng: np.random.Generator, n_points: int) -> csr_array:
        """One label by frequency, and up to three more that mostly come from its cluster."""
        main = self._pick(rng, np.zeros(n_points), np.ones(n_points))
        # One below the maximum: _cover may add a label.
        rows = np.repeat(np.arange(n_points), rng.binomial(MAX_LABELS_PER_POINT - 2, 0.4, n_points))
        start = main[rows] // self.labels_per_cluster * self.labels_per_cluster
        stop = np.minimum(start + self.labels_per_cluster, self.n_labels)
        inside = rng.random(len(rows)) < SHARE_IN_CLUSTER
        low = np.where(inside, self.ends[start], 0.0)
        high = np.where(inside, self.ends[stop], 1.0)
        further = self._pick(rng, low, high)
        all_rows = np.concatenate((np.arange(n_points), rows))
        return _label_matrix(all_rows, np.concatenate((main, further)), (n_points, self.n_labels))

    def _pick(
        self, rng: np.random.Generator, low: NDArray[np.float64], high: NDArray[np.float64]
    ) -> Ints:
        """Labels drawn by frequency from these slices of the cumulative frequencies."""
        place = low + (high - low) * rng.random(len(low))
        return np.minimum(np.searchsorted(self.ends, place, side="right"), self.n_labels) - 1

    def describe(
        self, rng: np.random.Generator, prefix: str, labels: csr_array, n_noise: int
    ) -> Points:
        """Titles for points with these labels: shown words and noise words, shuffled."""
        n_points = labels.shape[0]
        label_rows = np.repeat(np.arange(n_points), np.diff(labels.indptr))
        # Leaves out one stretch of each label's words, so that no two titles are quite alike.
        first = rng.integers(0, WORDS_PER_LABEL, (len(label_rows), 1))
        shown = (first + np.arange(WORDS_SHOWN)) % WORDS_PER_LABEL
        own = len(self.words) - self.n_labels * WORDS_PER_LABEL
        label_words = own + labels.indices.astype(np.int64)[:, None] * WORDS_PER_LABEL + shown
        # Squaring makes some noise words common and most of them rare, as in real text.
        noise = (NOISE_WORDS * rng.random(n_points * n_noise) ** 2).astype(np.int64)
        rows = np.concatenate(
            (np.repeat(label_rows, WORDS_SHOWN), np.repeat(np.arange(n_points), n_noise))
        )
        order = np.lexsort((rng.random(len(rows)), rows))
        words = self.words[np.concatenate((label_words.ravel(), noise))[order]].tolist()
        ends = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=n_points)))).tolist()
        return Points(
            uids=[f"{prefix}-{row}" for row in range(n_points)],
            titles=[" ".join(words[ends[row] : ends[row + 1]]) for row in range(n_points)],
            contents=[""] * n_points,
            labels=labels,
        )

    def catalogue(self) -> LabelCatalogue:
        """The labels, each titled with its cluster's word and all its own."""
        clusters = NOISE_WORDS + np.arange(self.n_labels) // self.labels_per_cluster
        own = len(self.words) - self.n_labels * WORDS_PER_LABEL
        own_words = np.arange(own, len(self.words)).reshape(self.n_labels, WORDS_PER_LABEL)
        words = self.words[np.column_stack((clusters, own_words))].tolist()
        return LabelCatalogue(
            uids=[f"label-{row}" for row in range(self.n_labels)],
            titles=[" ".join(row) for row in words],
            contents=[""] * self.n_labels,
        )


def _cover(rng: np.random.Generator, labels: csr_array) -> csr_array:
    """Adds each label that no point has to a point of its own."""
    n_points, n_labels = labels.shape
    missing = np.flatnonzero(np.bincount(labels.indices, minlength=n_labels) == 0)
    rows = np.repeat(np.arange(n_points), np.diff(labels.indptr))
    extra_rows = rng.permutation(n_points)[: len(missing)]
    return _label_matrix(
        np.concatenate((rows, extra_rows)), np.concatenate((labels.indices, missing)), labels.shape
    )


def _label_matrix(rows: Ints, labels: Ints, shape: tuple[int, int]) -> csr_array:
    pairs = np.unique(rows * shape[1] + labels)
    ends = np.searchsorted(pairs, np.arange(shape[0] + 1) * shape[1])
    ones = np.ones(len(pairs), dtype=np.float32)
    return csr_array((ones, pairs % shape[1], ends), shape=shape)


def _spell(rng: np.random.Generator, n_words: int) -> NDArray[np.object_]:
    """Different words of open syllables, all of the same length, in no order."""
    syllables = np.array([onset + vowel for onset in "bdfghjklmnprstvz" for vowel in "aeiou"])
    n_syllables = 2
    while len(syllables) ** n_syllables < n_words:
        n_syllables += 1
    # Spread over all spellings, or a small vocabulary would begin with one syllable throughout.
    left = rng.permutation(n_words) * (len(syllables) ** n_syllables // n_words)
    words = np.full(n_words, "")
    for _ in range(n_syllables):
        left, digit = np.divmod(left, len(syllables))
        words = np.strings.add(syllables[digit], words)
    return words.astype(object)


def _fingerprint(labels: LabelCatalogue, train: Points, test: Points) -> str:
    digest = hashlib.sha256()
    for titles in (labels.titles, train.titles, test.titles):
        digest.update("\n".join(titles).encode() + b"\0")
    for points in (train, test):
        digest.update(points.labels.indptr.astype("<i8").tobytes())
        digest.update(points.labels.indices.astype("<i8").tobytes())
    return digest.hexdigest()

"""Drift: whether what is seen now still looks like what was seen at first.

Keeps two histograms of one quantity over the same ten bins, whose edges are the deciles of the
first values: of these first values, and of a sliding window. Comparing them is the reader's work,
for several processes must add theirs up first (`service.exposition`).
"""

from collections import deque
from typing import Final

import numpy as np
from numpy.typing import NDArray

N_BINS: Final = 10
REFERENCE_SIZE: Final = 2000
WINDOW_SIZE: Final = 4000


class Drift:
    """Two histograms of one quantity. Not safe to share by threads."""

    def __init__(
        self, reference_size: int = REFERENCE_SIZE, window_size: int = WINDOW_SIZE
    ) -> None:
        self.reference = np.zeros(N_BINS)
        self.window = np.zeros(N_BINS)
        self._reference_size = reference_size
        self._window_size = window_size
        self._first: list[NDArray[np.float64]] = []
        self._edges: NDArray[np.float64] | None = None
        self._groups: deque[NDArray[np.float64]] = deque()

    def add(self, values: NDArray[np.float64]) -> None:
        """Count a group of values, at first into the reference, then into the window."""
        if self._edges is not None:
            self._slide(self._counts(self._edges, values))
            return
        self._first.append(values)
        if sum(map(len, self._first)) >= self._reference_size:
            first = np.concatenate(self._first)
            # Equal values may share several deciles; then some bins stay empty in both.
            self._edges = np.quantile(first, np.arange(1, N_BINS) / N_BINS)
            self.reference = self._counts(self._edges, first)
            self._first = []

    def _slide(self, counts: NDArray[np.float64]) -> None:
        self._groups.append(counts)
        self.window = self.window + counts
        while self.window.sum() - self._groups[0].sum() >= self._window_size:
            self.window = self.window - self._groups.popleft()

    @staticmethod
    def _counts(edges: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
        bins = np.searchsorted(edges, values, side="left")
        return np.bincount(bins, minlength=N_BINS).astype(np.float64)

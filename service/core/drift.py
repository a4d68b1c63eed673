"""Drift: whether what is seen now still looks like what was seen before.

Keeps two histograms of one quantity over the same bins: a reference, which a bundle brings or else
the first values make, and a sliding window. Comparing them is the reader's work, for several
processes must add theirs up first (`service.observe.exposition`); so the bins are given, and not
the tenths of what one process happened to see first, which would not add up.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

REFERENCE_SIZE: Final = 2000
WINDOW_SIZE: Final = 4000

SCORE_BOUNDS: Final = (
    *(0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5),
    *(0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99, 1.0, 2.0, 5.0, 10.0),
)
"""Fine where probabilities and cosines lie; the last three are for raw logits."""

LENGTH_BOUNDS: Final = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024)


def histogram_counts(values: NDArray[np.float64], bounds: Sequence[float]) -> NDArray[np.int64]:
    """How many values (n,) lie up to each bound, and above the last: (len(bounds) + 1,).

    >>> histogram_counts(np.array([1.0, 2.0, 2.5, 9.0]), (2, 4))
    array([2, 1, 1])
    """
    bins = np.searchsorted(np.asarray(bounds, np.float64), values, side="left")
    return np.bincount(bins, minlength=len(bounds) + 1)


class Drift:
    """Two histograms of `n_bins` counts each. Not safe to share by threads."""

    def __init__(
        self,
        n_bins: int,
        reference_size: int = REFERENCE_SIZE,
        window_size: int = WINDOW_SIZE,
        reference: NDArray[np.int64] | None = None,
    ) -> None:
        """`reference` (n_bins,) is what to compare with; None for the first values."""
        if reference is not None:
            reference_size = 0
        self.reference = np.zeros(n_bins, np.int64) if reference is None else reference
        self.window = np.zeros(n_bins, np.int64)
        self._reference_size = reference_size
        self._window_size = window_size
        self._groups: deque[NDArray[np.int64]] = deque()

    def add(self, counts: NDArray[np.int64]) -> None:
        """Count a group of values, (n_bins,): into the reference until that is full."""
        if self.reference.sum() < self._reference_size:
            self.reference += counts
            return
        self._groups.append(counts)
        self.window += counts
        while self.window.sum() - self._groups[0].sum() >= self._window_size:
            self.window -= self._groups.popleft()

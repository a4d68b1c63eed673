"""Drift: whether what is seen now still looks like what was seen at first.

Keeps two histograms of one quantity over the same bins: of the first values, and of a sliding
window. Comparing them is the reader's work, for several processes must add theirs up first
(`service.exposition`); so the bins are given, and not the tenths of what one process happened to
see first, which would not add up.
"""

from collections import deque
from typing import Final

import numpy as np
from numpy.typing import NDArray

REFERENCE_SIZE: Final = 2000
WINDOW_SIZE: Final = 4000


class Drift:
    """Two histograms of `n_bins` counts each. Not safe to share by threads."""

    def __init__(
        self,
        n_bins: int,
        reference_size: int = REFERENCE_SIZE,
        window_size: int = WINDOW_SIZE,
    ) -> None:
        self.reference = np.zeros(n_bins, np.int64)
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

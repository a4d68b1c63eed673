"""Drift: two histograms of one quantity, to compare recent values with a reference.

Both use the same bins. The reference comes from the bundle, or else from the first values; the
other is a sliding window. `service.observe.exposition` compares them after it has added up those of
all processes. For the sums to make sense the bins are fixed, and not quantiles of the values that
one process saw first.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

REFERENCE_SIZE: Final = 2000
"""Values that form a reference. A choice: more make it steadier, fewer make it complete earlier."""
WINDOW_SIZE: Final = 4000
"""Values in the window. A choice: more make it steadier, fewer let it show a change earlier."""

SCORE_BOUNDS: Final = (
    *(0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5),
    *(0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99, 1.0, 2.0, 5.0, 10.0),
)
"""Narrow bins for probabilities and cosines; the last three bounds are for raw logits."""

LENGTH_BOUNDS: Final = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024)
"""Tokens of a text, in bins that widen with the length."""


def histogram_counts(values: NDArray[np.float64], bounds: Sequence[float]) -> NDArray[np.int64]:
    """Count the values (n,) in each bin, up to and with its bound: (len(bounds) + 1,).

    The last bin counts the values above the last bound.

    >>> histogram_counts(np.array([1.0, 2.0, 2.5, 9.0]), (2, 4))
    array([2, 1, 1])
    """
    bins = np.searchsorted(np.asarray(bounds, np.float64), values, side="left")
    return np.bincount(bins, minlength=len(bounds) + 1)


class Drift:
    """Two histograms of `n_bins` counts each. Only one thread at a time may use it."""

    def __init__(
        self,
        n_bins: int,
        reference_size: int = REFERENCE_SIZE,
        window_size: int = WINDOW_SIZE,
        reference: NDArray[np.int64] | None = None,
    ) -> None:
        """`reference` (n_bins,) is the bundle's; with None the first values form it."""
        if reference is not None:
            reference_size = 0
        self.reference = np.zeros(n_bins, np.int64) if reference is None else reference
        self.window = np.zeros(n_bins, np.int64)
        self._reference_size = reference_size
        self._window_size = window_size
        self._groups: deque[NDArray[np.int64]] = deque()

    def add(self, counts: NDArray[np.int64]) -> None:
        """Add the counts (n_bins,) of a group of values.

        They go into the reference until it holds `reference_size` values, then into the window.
        """
        if self.reference.sum() < self._reference_size:
            self.reference += counts
            return
        self._groups.append(counts)
        self.window += counts
        while self.window.sum() - self._groups[0].sum() >= self._window_size:
            self.window -= self._groups.popleft()

"""Shapes: histograms and drift of what the answers look like, counted a group at a time.

One `observe` of a prometheus_client histogram costs 2 microseconds, which is too much for every
text of every answer; counted in groups of 64 a value costs a tenth of that. `service.exposition`
makes histograms and a drift index of what is counted here.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.utils import floatToGoString

from service.core.drift import Drift
from service.core.types import Prediction
from service.exposition import COUNTS, REFERENCE, SUM, WINDOW

GROUP: Final = 64

SCORE_BUCKETS: Final = (
    *(0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5),
    *(0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99, 1.0, 2.0, 5.0, 10.0),
)
"""Fine where probabilities and cosines lie; the last three are for raw logits."""

LENGTH_BUCKETS: Final = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024)


class Shapes:
    """The best score and the tokens of every text answered. For the event loop's thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counts = Counter(COUNTS, "Values by histogram and bucket.", ["of", "le"], registry=registry)
        sums = Gauge(SUM, "Sum of the values.", ["of"], registry=registry, multiprocess_mode="sum")
        drifts = [
            Gauge(name, text, ["of", "bin"], registry=registry, multiprocess_mode="livesum")
            for name, text in ((WINDOW, "Recent values."), (REFERENCE, "Values at first."))
        ]
        self._top_score = _Shape("top_score", SCORE_BUCKETS, counts, sums, drifts)
        self._tokens = _Shape("query_tokens", LENGTH_BUCKETS, counts, sums, drifts)

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Note what one answer looks like."""
        scores, tokens = self._top_score.waiting, self._tokens.waiting
        for prediction in predictions:
            if len(prediction.scores):
                scores.append(prediction.scores[0])
            tokens.append(prediction.n_tokens)
        if len(tokens) >= GROUP:
            self.flush()

    def flush(self) -> None:
        """Count everything noted."""
        self._top_score.flush()
        self._tokens.flush()

    def show_drift(self) -> None:
        """Let scrapes see the windows as they are now; too dear to do at every flush."""
        self._top_score.show_drift()
        self._tokens.show_drift()


class _Shape:
    """One quantity."""

    def __init__(
        self, name: str, bounds: Sequence[float], counts: Counter, sums: Gauge, drifts: list[Gauge]
    ) -> None:
        self.waiting: list[Any] = []
        self._bounds = np.array(bounds, np.float64)
        self._buckets = [counts.labels(name, floatToGoString(b)) for b in (*bounds, float("inf"))]
        self._sum = sums.labels(name)
        self._drift = Drift(len(self._buckets))
        self._bins = [
            [gauge.labels(name, f"{number:02}") for number in range(len(self._buckets))]
            for gauge in drifts
        ]

    def flush(self) -> None:
        if not self.waiting:
            return
        values, self.waiting = np.array(self.waiting, np.float64), []
        bins = np.searchsorted(self._bounds, values, side="left")
        counts = np.bincount(bins, minlength=len(self._buckets))
        for bucket in np.flatnonzero(counts):
            self._buckets[bucket].inc(int(counts[bucket]))
        self._sum.inc(float(values.sum()))
        self._drift.add(counts)

    def show_drift(self) -> None:
        for gauges, now in zip(
            self._bins, (self._drift.window, self._drift.reference), strict=True
        ):
            for gauge, value in zip(gauges, now.tolist(), strict=True):
                gauge.set(value)

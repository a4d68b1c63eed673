"""Shapes: histograms and drift of what the answers look like, counted a group at a time.

One `observe` of a prometheus_client histogram costs 2 microseconds, which is too much for every
text of every answer; counted in groups of 64 a value costs a tenth of that.
`service.observe.exposition` makes histograms and a drift index of what is counted here.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.utils import floatToGoString

from service.bundle.manifest import HistogramInfo, ReferenceInfo
from service.core.drift import LENGTH_BOUNDS, SCORE_BOUNDS, Drift, histogram_counts
from service.core.types import Prediction
from service.observe.exposition import COUNTS, REFERENCE, SUM, WINDOW

GROUP: Final = 64

LEAST_REFERENCE: Final = 500
"""A bundle's reference of fewer texts says too little; then the first ones served are it."""


class Shapes:
    """The best score and the tokens of every text answered. For the event loop's thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counts = Counter(COUNTS, "Values by histogram and bucket.", ["of", "le"], registry=registry)
        sums = Gauge(SUM, "Sum of the values.", ["of"], registry=registry, multiprocess_mode="sum")
        drifts = [
            Gauge(name, text, ["of", "bin"], registry=registry, multiprocess_mode="livesum")
            for name, text in ((WINDOW, "Recent values."), (REFERENCE, "Values to compare with."))
        ]
        self._top_score = _Shape("top_score", SCORE_BOUNDS, counts, sums, drifts)
        self._tokens = _Shape("query_tokens", LENGTH_BOUNDS, counts, sums, drifts)

    def expect(self, reference: ReferenceInfo | None) -> None:
        """Compare what is answered from now on with a bundle's reference; None: with the first.

        Asked again for the same, nothing begins anew.
        """
        self.flush()
        self._top_score.expect(None if reference is None else reference.top_score)
        self._tokens.expect(None if reference is None else reference.query_tokens)

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
        self._bounds = bounds
        self._expected: HistogramInfo | None = None
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
        counts = histogram_counts(values, self._bounds)
        for bucket in np.flatnonzero(counts):
            self._buckets[bucket].inc(int(counts[bucket]))
        self._sum.inc(float(values.sum()))
        self._drift.add(counts)

    def expect(self, expected: HistogramInfo | None) -> None:
        if expected is not None and (
            expected.bounds != list(self._bounds) or sum(expected.counts) < LEAST_REFERENCE
        ):
            expected = None  # other bins cannot be compared
        if expected != self._expected:
            counts = None if expected is None else np.array(expected.counts, np.int64)
            self._drift = Drift(len(self._buckets), reference=counts)
            self._expected = expected

    def show_drift(self) -> None:
        for gauges, now in zip(
            self._bins, (self._drift.window, self._drift.reference), strict=True
        ):
            for gauge, value in zip(gauges, now.tolist(), strict=True):
                gauge.set(value)

"""Shapes: counts the best score and the text length of every answer, for histograms and drift.

One `observe` of a prometheus_client histogram takes 2 microseconds, which is too much for every
text of every answer. Counted in groups of 64, a value takes a tenth of that. From these counts
`service.observe.exposition` computes the histograms and the drift index that a scrape sees.
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
"""Values that are counted together; the module's docstring has the measurement."""

LEAST_REFERENCE: Final = 500
"""A bundle's reference needs this many texts; with fewer the first answered texts are the
reference. A choice, the same as `LEAST_WINDOW` of `service.observe.exposition`: fewer make a noisy
index."""


class Shapes:
    """Counts the best score and the tokens of every query. Use it from the event loop's thread.

    A query by embedding has no text, so it counts in the scores only.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        counts = Counter(COUNTS, "Values by histogram and bucket.", ["of", "le"], registry=registry)
        sums = Gauge(SUM, "Sum of the values.", ["of"], registry=registry, multiprocess_mode="sum")
        drifts = [
            Gauge(name, text, ["of", "bin"], registry=registry, multiprocess_mode="livesum")
            for name, text in ((WINDOW, "Recent values."), (REFERENCE, "Values to compare with."))
        ]
        self._top_score = _Shape("top_score", SCORE_BOUNDS, counts, sums, drifts)
        self._tokens = _Shape("query_tokens", LENGTH_BOUNDS, counts, sums, drifts)

    def set_reference(self, reference: ReferenceInfo | None) -> None:
        """Compare answers with a bundle's reference from now on; None: with the first answers.

        The same reference again changes nothing; another one empties the window.
        """
        self.flush()
        self._top_score.set_reference(None if reference is None else reference.top_score)
        self._tokens.set_reference(None if reference is None else reference.query_tokens)

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Add the queries of one answer."""
        scores, tokens = self._top_score.pending, self._tokens.pending
        for prediction in predictions:
            if len(prediction.scores):
                scores.append(prediction.scores[0])
            if prediction.n_tokens:
                tokens.append(prediction.n_tokens)
        if max(len(scores), len(tokens)) >= GROUP:
            self.flush()

    def flush(self) -> None:
        """Count all that was added."""
        self._top_score.flush()
        self._tokens.flush()

    def show_drift(self) -> None:
        """Copy the drift windows to the gauges that scrapes read. Too slow to do at every flush."""
        self._top_score.show_drift()
        self._tokens.show_drift()


class _Shape:
    """Counts of one quantity: its histogram, its sum and its drift."""

    def __init__(
        self, name: str, bounds: Sequence[float], counts: Counter, sums: Gauge, drifts: list[Gauge]
    ) -> None:
        self.pending: list[Any] = []
        self._bounds = bounds
        self._reference: HistogramInfo | None = None
        self._buckets = [counts.labels(name, floatToGoString(b)) for b in (*bounds, float("inf"))]
        self._sum = sums.labels(name)
        self._drift = Drift(len(self._buckets))
        self._bins = [
            [gauge.labels(name, f"{number:02}") for number in range(len(self._buckets))]
            for gauge in drifts
        ]

    def flush(self) -> None:
        if not self.pending:
            return
        values, self.pending = np.array(self.pending, np.float64), []
        counts = histogram_counts(values, self._bounds)
        for bucket in np.flatnonzero(counts):
            self._buckets[bucket].inc(int(counts[bucket]))
        self._sum.inc(float(values.sum()))
        self._drift.add(counts)

    def set_reference(self, reference: HistogramInfo | None) -> None:
        if reference is not None and (
            reference.bounds != list(self._bounds) or sum(reference.counts) < LEAST_REFERENCE
        ):
            reference = None  # histograms with other bins cannot be compared
        if reference != self._reference:
            counts = None if reference is None else np.array(reference.counts, np.int64)
            self._drift = Drift(len(self._buckets), reference=counts)
            self._reference = reference

    def show_drift(self) -> None:
        histograms = (self._drift.window, self._drift.reference)
        for gauges, counts in zip(self._bins, histograms, strict=True):
            for gauge, value in zip(gauges, counts.tolist(), strict=True):
                gauge.set(value)

"""Exposition: what a scrape sees. The service's own metrics, and what can only be told from sums.

A recall, an interval or a drift index of several workers is no sum, mean or maximum of theirs. So
each worker counts what does add up, under names that start with `INTERNAL`, and the answers are
computed here from the totals, the same way for one process and for several.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

INTERNAL: Final = "astrolabe_internal_"
COUNTS: Final = INTERNAL + "counts"
SUM: Final = INTERNAL + "sum"
WINDOW: Final = INTERNAL + "window"
REFERENCE: Final = INTERNAL + "reference"
RECALL: Final = INTERNAL + "recall"

LEAST_WINDOW: Final = 500
"""Below so many values the drift index is mostly noise, so none is exposed."""

Z_95: Final = 1.959963984540054

HISTOGRAMS: Final[Mapping[str, str]] = {
    "top_score": "Best served score of each text answered.",
    "query_tokens": "Tokens of each text answered, special tokens counted.",
}


class Exposition(Collector):
    """`source`'s metrics with the internal ones replaced by what is derived from them."""

    def __init__(self, source: Collector) -> None:
        self._source = source
        self.beside: list[Collector] = []

    def collect(self) -> Iterator[Metric]:
        """Every metric family of a scrape."""
        internal: dict[str, Metric] = {}
        for family in self._source.collect():
            if family.name.startswith(INTERNAL):
                internal[family.name] = family
            else:
                yield family
        yield from _histograms(internal)
        yield _drift(internal)
        yield from _live_recall(internal)
        for collector in self.beside:
            yield from collector.collect()


def stability_index(window: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """Population stability index of two histograms over the same bins; 0 where they agree.

    Half a count is added to every bin, so that an empty one does not make it infinite.

    >>> round(stability_index(np.array([30.0, 70.0]), np.array([30.0, 70.0])), 6)
    0.0
    """
    seen = (window + 0.5) / (window + 0.5).sum()
    expected = (reference + 0.5) / (reference + 0.5).sum()
    return float(((seen - expected) * np.log(seen / expected)).sum())


def wilson_interval(share: float, n: float) -> tuple[float, float]:
    """The 95 % interval of a share seen in `n` independent trials, both ends in [0, 1].

    >>> [round(end, 3) for end in wilson_interval(0.95, 100)]
    [0.888, 0.978]
    """
    square = Z_95 * Z_95
    centre = (share + square / (2 * n)) / (1 + square / n)
    spread = math.sqrt(share * (1 - share) / n + square / (4 * n * n)) * Z_95 / (1 + square / n)
    return max(0.0, centre - spread), min(1.0, centre + spread)


def _histograms(internal: Mapping[str, Metric]) -> Iterator[Metric]:
    counts = _by(internal, COUNTS, "of", "le")
    sums = _by(internal, SUM, "of")
    for name, help_text in HISTOGRAMS.items():
        family = HistogramMetricFamily(f"astrolabe_{name}", help_text)
        buckets, total = [], 0.0
        of_this = [(le, value) for (of, le), value in counts.items() if of == name]
        for le, value in sorted(of_this, key=lambda pair: float(pair[0])):
            total += value
            buckets.append((le, total))
        if buckets:
            family.add_metric([], buckets=buckets, sum_value=sums[name,])
        yield family


def _drift(internal: Mapping[str, Metric]) -> Metric:
    family = GaugeMetricFamily(
        "astrolabe_score_drift",
        "Population stability index of recent answers against the reference.",
        labels=["of"],
    )
    window, reference = _by(internal, WINDOW, "of", "bin"), _by(internal, REFERENCE, "of", "bin")
    for name in HISTOGRAMS:
        bins = sorted(key for key in reference if key[0] == name)
        seen = np.array([window[key] for key in bins])
        expected = np.array([reference[key] for key in bins])
        if seen.sum() >= LEAST_WINDOW and expected.sum():
            family.add_metric([name], stability_index(seen, expected))
    return family


def _live_recall(internal: Mapping[str, Metric]) -> Iterator[Metric]:
    families: dict[str, Any] = {
        name: GaugeMetricFamily(f"astrolabe_live_recall_{name}", help_text, labels=["point"])
        for name, help_text in (
            ("at_k", "Share of the exact top k (at most 10) found by recent sampled answers."),
            ("low", "Lower end of the 95 % Wilson interval of the live recall."),
            ("high", "Upper end of the 95 % Wilson interval of the live recall."),
            ("samples", "Sampled answers in the window that the live recall is measured on."),
        )
    }
    totals = _by(internal, RECALL, "point", "what")
    for point in sorted({point for point, _ in totals}):
        hits, expected = totals[point, "hits"], totals[point, "expected"]
        samples = totals[point, "samples"]
        if expected and samples:
            # A query is one trial, not k: its rows are found or missed together.
            values = (hits / expected, *wilson_interval(hits / expected, samples), samples)
            for family, value in zip(families.values(), values, strict=True):
                family.add_metric([point], value)
    yield from families.values()


def _by(
    internal: Mapping[str, Metric], name: str, *labels: str
) -> defaultdict[tuple[str, ...], float]:
    """Values of an internal family by its labels."""
    values: defaultdict[tuple[str, ...], float] = defaultdict(float)
    family = internal.get(name)
    for sample in family.samples if family else ():
        if not sample.name.endswith("_created"):
            values[tuple(sample.labels[label] for label in labels)] += sample.value
    return values

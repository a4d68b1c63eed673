"""Exposition: turns the workers' counts into the metrics that a scrape sees.

The live recall, its interval and the drift index of several workers cannot be computed from those
of each worker. So each worker exports counts that do add up, under names that start with
`INTERNAL`. Here they are added up, and the metrics are computed from the totals. One process does
the same.
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
"""With fewer values in the window no drift index is exposed. A choice: by chance alone two samples
of one distribution have an index of about (bins - 1)(1/n + 1/m) (Yurdakul, 2018). With 27 bins, n =
500 and m = 2,000 that is 0.065, far from the 0.25 at which operators are alerted."""

Z_95: Final = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""

HISTOGRAMS: Final[Mapping[str, str]] = {
    "top_score": "Best served score of each text or vector answered.",
    "query_tokens": "Tokens of each text answered, special tokens counted.",
}


class Exposition(Collector):
    """Collects `source`'s metrics, but replaces the internal ones by what is computed from them.

    Collectors in `beside` are added to every scrape as they are.
    """

    def __init__(self, source: Collector) -> None:
        self._source = source
        self.beside: list[Collector] = []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family of a scrape."""
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
    """Population stability index of two histograms (n_bins,) over the same bins.

    It is their symmetric divergence (Kullback and Leibler, 1951), and 0 where they agree. Half a
    count is added to every bin, because an empty bin would make it infinite.

    >>> round(stability_index(np.array([30.0, 70.0]), np.array([30.0, 70.0])), 6)
    0.0
    """
    observed = (window + 0.5) / (window + 0.5).sum()
    expected = (reference + 0.5) / (reference + 0.5).sum()
    return float(((observed - expected) * np.log(observed / expected)).sum())


def wilson_interval(share: float, n: float) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share of `n` independent trials (Wilson, 1927).

    Returns its two ends, each in [0, 1].

    >>> [round(end, 3) for end in wilson_interval(0.95, 100)]
    [0.888, 0.978]
    """
    square = Z_95 * Z_95
    centre = (share + square / (2 * n)) / (1 + square / n)
    spread = math.sqrt(share * (1 - share) / n + square / (4 * n * n)) * Z_95 / (1 + square / n)
    return max(0.0, centre - spread), min(1.0, centre + spread)


def _histograms(internal: Mapping[str, Metric]) -> Iterator[Metric]:
    counts = _values_by(internal, COUNTS, "of", "le")
    sums = _values_by(internal, SUM, "of")
    for name, help_text in HISTOGRAMS.items():
        family = HistogramMetricFamily(f"astrolabe_{name}", help_text)
        buckets, total = [], 0.0
        pairs = [(le, value) for (of, le), value in counts.items() if of == name]
        for le, value in sorted(pairs, key=lambda pair: float(pair[0])):
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
    window, reference = (
        _values_by(internal, WINDOW, "of", "bin"),
        _values_by(internal, REFERENCE, "of", "bin"),
    )
    for name in HISTOGRAMS:
        bins = sorted(key for key in reference if key[0] == name)
        observed = np.array([window[key] for key in bins])
        expected = np.array([reference[key] for key in bins])
        if observed.sum() >= LEAST_WINDOW and expected.sum():
            family.add_metric([name], stability_index(observed, expected))
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
    totals = _values_by(internal, RECALL, "point", "what")
    for point in sorted({point for point, _ in totals}):
        n_hits, n_exact = totals[point, "hits"], totals[point, "expected"]
        samples = totals[point, "samples"]
        if n_exact and samples:
            recall = n_hits / n_exact
            # One query is one trial, not k: a search tends to find or miss its rows together.
            values = (recall, *wilson_interval(recall, samples), samples)
            for family, value in zip(families.values(), values, strict=True):
                family.add_metric([point], value)
    yield from families.values()


def _values_by(
    internal: Mapping[str, Metric], name: str, *labels: str
) -> defaultdict[tuple[str, ...], float]:
    """Values of an internal family, summed by these labels of its samples."""
    values: defaultdict[tuple[str, ...], float] = defaultdict(float)
    family = internal.get(name)
    for sample in family.samples if family else ():
        if not sample.name.endswith("_created"):
            values[tuple(sample.labels[label] for label in labels)] += sample.value
    return values

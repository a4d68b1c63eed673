"""Computes the numbers of a step from its samples.

Latencies are those of answered queries, because a failure has no latency worth averaging. A step
counts its failures instead, and `p99_with_failures` takes each as infinitely late.
"""

import math
from collections.abc import Iterable

import numpy as np

from loadtest.samples import Floats, Samples

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}


def latency_summary(latencies_s: Floats) -> dict[str, float] | None:
    """Mean, nearest-rank percentiles and maximum in ms of latencies (n,); None where n is 0.

    >>> latency_summary(np.array([0.001, 0.002, 0.003]))["p50"]
    2.0
    """
    if latencies_s.size == 0:
        return None
    ordered = np.sort(latencies_s) * 1000
    summary = {"mean": round(float(ordered.mean()), 4)}
    for name, quantile in QUANTILES.items():
        summary[name] = round(float(ordered[_rank(quantile, ordered.size)]), 4)
    summary["max"] = round(float(ordered[-1]), 4)
    return summary


def p99_with_failures(samples: Samples) -> float | None:
    """The p99 in ms over every scheduled query; None where the query of that rank failed."""
    if samples.code.size == 0:
        return None
    latencies_s = np.where(samples.ok, samples.from_schedule_s, math.inf)
    p99_s = float(np.sort(latencies_s)[_rank(0.99, latencies_s.size)])
    return round(p99_s * 1000, 4) if math.isfinite(p99_s) else None


def answered_rate(samples: Samples) -> float:
    """Usable answers per second, from the first scheduled query to the last completion."""
    n_ok = int(samples.ok.sum())
    if n_ok == 0:
        return 0.0
    elapsed_s = float((samples.scheduled_s + samples.from_schedule_s)[samples.ok].max())
    return round(n_ok / elapsed_s, 2)


def mean_stages(headers: Iterable[bytes]) -> dict[str, float]:
    """Mean ms of each stage in Server-Timing headers (W3C Server Timing), in order of appearance.

    >>> mean_stages([b"queue;dur=0.25, total;dur=1", b"queue;dur=0.75, total;dur=2"])
    {'queue': 0.5, 'total': 1.5}
    """
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for header in headers:
        for entry in header.decode("latin-1").split(","):
            name, _, parameters = entry.strip().partition(";")
            for parameter in parameters.split(";"):
                key, _, value = parameter.strip().partition("=")
                if key.lower() == "dur" and _is_number(value):
                    sums[name] = sums.get(name, 0.0) + float(value)
                    counts[name] = counts.get(name, 0) + 1
    return {name: round(total / counts[name], 4) for name, total in sums.items()}


def _rank(quantile: float, size: int) -> int:
    # LoadGen's rule, so that its percentiles and these are comparable.
    return min(size - 1, int(size * quantile))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False

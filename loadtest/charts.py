"""Draws the report's charts with matplotlib, as SVG text that fits into an HTML page.

Each chart draws a curve of bounded length instead of every sample, so its size does not grow with
the test.
"""

import io
import re
from collections.abc import Sequence
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from loadtest.result import StepResult
from loadtest.samples import Samples

# The colour-blind safe palette of Okabe and Ito. Line styles tell the curves apart as well.
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#6b6b6b"
N_BINS = 120  # a choice: more bins are narrower than a mark, fewer hide a short stall


def latency_cdf(curves: Sequence[tuple[str, Samples]], p99_ms: float) -> str:
    """Plot the share of all scheduled queries that were answered within x ms.

    `curves` pairs a legend entry with its samples. Failures keep a curve below 1.
    """
    figure, axes = _axes("latency from the scheduled time, ms (log)", "share of queries answered")
    for (label, samples), colour in zip(curves, (BLUE, ORANGE, GREEN), strict=False):
        latencies_ms = np.sort(samples.from_schedule_s[samples.ok]) * 1000
        if latencies_ms.size == 0:
            continue
        shares = np.unique(np.concatenate([np.linspace(0, 1, 200), 1 - np.logspace(-4, 0, 200)]))
        rows = np.minimum((shares * latencies_ms.size).astype(int), latencies_ms.size - 1)
        answered_share = (rows + 1) / len(samples.code)
        axes.plot(latencies_ms[rows], answered_share, color=colour, label=label)
    _log_scale(axes, "x", p99_ms)
    axes.axhline(0.99, color=GREY, linewidth=0.8, linestyle=":")
    axes.axvline(p99_ms, color=GREY, linewidth=0.8, linestyle="--", label=f"limit {p99_ms:g} ms")
    axes.set_ylim(0, 1.02)
    return _svg(figure, axes)


def latency_by_rate(steps: Sequence[StepResult], p99_ms: float) -> str:
    """Plot p50 and p99 of every step against its target rate; a cross marks a step that failed."""
    figure, axes = _axes("target rate, queries/s", "latency from the scheduled time, ms (log)")
    by_rate = sorted(
        (step for step in steps if step.latency_from_schedule_ms), key=lambda step: step.rate_asked
    )
    rates = [step.rate_asked for step in by_rate]
    for name, colour, style in (("p99", ORANGE, "-"), ("p50", BLUE, "--")):
        values = [(step.latency_from_schedule_ms or {})[name] for step in by_rate]
        axes.plot(rates, values, style, marker="o", color=colour, label=name)
    failures = [step for step in by_rate if not step.holds]
    axes.plot(
        [step.rate_asked for step in failures],
        [(step.latency_from_schedule_ms or {})["p99"] for step in failures],
        "x",
        color="black",
        markersize=10,
        label="does not hold",
    )
    _log_scale(axes, "y", p99_ms)
    axes.axhline(p99_ms, color=GREY, linewidth=0.8, linestyle="--", label=f"limit {p99_ms:g} ms")
    return _svg(figure, axes)


def latency_over_time(samples: Samples, p99_ms: float) -> str:
    """Plot median and worst latency, and failures, against the time of schedule."""
    figure, axes = _axes("scheduled at, seconds into the step", "latency, ms (log)")
    end_s = float(samples.scheduled_s.max()) if samples.scheduled_s.size else 0.0
    edges = np.linspace(0, end_s or 1.0, N_BINS + 1)
    bins = np.clip(np.digitize(samples.scheduled_s, edges) - 1, 0, N_BINS - 1)
    middles = (edges[:-1] + edges[1:]) / 2
    median, worst = np.full(N_BINS, np.nan), np.full(N_BINS, np.nan)
    for row in np.unique(bins[samples.ok]):
        latencies_ms = samples.from_schedule_s[samples.ok & (bins == row)] * 1000
        median[row], worst[row] = np.median(latencies_ms), latencies_ms.max()
    axes.plot(middles, worst, color=ORANGE, label="worst")
    axes.plot(middles, median, color=BLUE, linestyle="--", label="median")
    failures = np.bincount(bins[~samples.ok], minlength=N_BINS)
    if failures.any():
        at = middles[failures > 0]
        axes.plot(at, np.full(at.size, p99_ms), "x", color="black", label="failures")
    _log_scale(axes, "y", p99_ms)
    axes.axhline(p99_ms, color=GREY, linewidth=0.8, linestyle="--", label=f"limit {p99_ms:g} ms")
    return _svg(figure, axes)


def _axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(visible=True, which="major", color="#e5e5e5")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _log_scale(axes: Axes, which: Literal["x", "y"], limit_ms: float) -> None:
    """Make an axis of latencies logarithmic; without two latencies it spans the limit's decades."""
    low, high = axes.dataLim.intervalx if which == "x" else axes.dataLim.intervaly
    axes.set(**{f"{which}scale": "log"})
    if not low < high:
        axes.set(**{f"{which}lim": (limit_ms / 10, limit_ms * 10)})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _svg(figure: Figure, axes: Axes) -> str:
    axes.legend(loc="best", frameon=False, fontsize="small")
    # Text stays text and does not become outlines. The salt makes equal data give equal bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "astrolabe"}):
        buffer = io.StringIO()
        no_metadata = {"Creator": None, "Date": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", metadata=no_metadata)
    svg = buffer.getvalue()
    # HTML allows no XML prolog inside a page and needs no namespace addresses.
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :])

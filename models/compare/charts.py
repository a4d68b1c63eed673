"""Draws two charts of a comparison as SVG: P@1 against latency, and PSP@5 against P@5.

The same rows give the same bytes. The extra `peers` installs matplotlib.
"""

import io
from pathlib import Path
from typing import Any, Final

from models.compare.record import OURS, Comparison, Row
from models.extras import need
from service.atomic import write_atomic

LATENCY_CHART: Final = "p1-by-latency.svg"
TAIL_CHART: Final = "psp5-by-p5.svg"
# From the colour-blind safe palette of Okabe and Ito. Marks tell the systems apart as well.
_BLUE, _GREY = "#0072b2", "#6b6b6b"


def write_charts(comparison: Comparison, folder: Path) -> None:
    """Write both charts into the folder. Raises PeerMissing where matplotlib is not installed."""
    latency = [(row, row.query_ms_p50, row.metrics["p1"]) for row in comparison.rows]
    tail = [(row, row.metrics["p5"], row.metrics["psp5"]) for row in comparison.rows]
    charts = {
        LATENCY_CHART: _chart(latency, "one query, median ms (log)", "P@1", log_x=True),
        TAIL_CHART: _chart(tail, "P@5", "PSP@5", log_x=False),
    }
    for name, svg in charts.items():
        _write(folder / name, svg)


def _write(path: Path, svg: str) -> None:
    write_atomic(path, lambda temporary: temporary.write_text(svg, "utf-8"))


def _chart(points: list[tuple[Row, float, float]], x: str, y: str, *, log_x: bool) -> str:
    figure = need("matplotlib.figure").Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, color="#e5e5e5")
    axes.spines[["top", "right"]].set_visible(False)
    for row, across, up in points:
        ours = row.system.startswith(OURS)
        axes.plot([across], [up], "o" if ours else "s", color=_BLUE if ours else _GREY)
        axes.annotate(
            row.system, (across, up), (5, 5), textcoords="offset points", fontsize="small"
        )
    if log_x:
        _log_scale(axes)
    axes.margins(0.2)
    return _svg(figure)


def _log_scale(axes: Any) -> None:
    ticker = need("matplotlib.ticker")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())


def _svg(figure: Any) -> str:
    # Text stays text, which keeps the file small. A fixed salt makes the file's ids repeatable.
    with need("matplotlib").rc_context({"svg.fonttype": "none", "svg.hashsalt": "astrolabe"}):
        buffer = io.StringIO()
        no_metadata = {"Creator": None, "Date": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", metadata=no_metadata)
    return buffer.getvalue()

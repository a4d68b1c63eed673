"""Draws two charts of a comparison as SVG: P@1 against latency, and PSP@5 against P@5.

The same rows give the same bytes.
"""

from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from models.compare.record import OURS, Comparison, Row
from models.svg import svg_of
from service.atomic import write_text

LATENCY_CHART: Final = "p1-by-latency.svg"
TAIL_CHART: Final = "psp5-by-p5.svg"
# From the colour-blind safe palette of Okabe and Ito. Marks tell the systems apart as well.
_BLUE, _GREY = "#0072b2", "#6b6b6b"


def write_charts(comparison: Comparison, folder: Path) -> None:
    """Write both charts into the folder."""
    latency = [(row, row.query_ms_p50, row.metrics["p1"]) for row in comparison.rows]
    tail = [(row, row.metrics["p5"], row.metrics["psp5"]) for row in comparison.rows]
    charts = {
        LATENCY_CHART: _chart(latency, "one query, median ms (log)", "P@1", log_x=True),
        TAIL_CHART: _chart(tail, "P@5", "PSP@5", log_x=False),
    }
    for name, svg in charts.items():
        write_text(folder / name, svg)


def _chart(points: list[tuple[Row, float, float]], x: str, y: str, *, log_x: bool) -> str:
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
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
    return svg_of(figure)


def _log_scale(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())

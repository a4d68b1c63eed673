"""A matplotlib figure as SVG text."""

import io

import matplotlib
from matplotlib.figure import Figure


def svg_of(figure: Figure) -> str:
    """The picture without dates and names; the same figure gives the same bytes."""
    # Text stays text, which keeps it small; a fixed salt for ids gives the same bytes again.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "astrolabe"}):
        buffer = io.StringIO()
        nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", metadata=nothing)
    return buffer.getvalue()

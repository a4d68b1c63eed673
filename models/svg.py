"""A matplotlib figure as SVG text that can stand inside an HTML page."""

import io
import re

import matplotlib
from matplotlib.figure import Figure


def svg_of(figure: Figure) -> str:
    """The picture without prolog, dates and namespaces; the same figure gives the same bytes."""
    # Text stays text, which keeps it small; a fixed salt for ids gives the same bytes again.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "astrolabe"}):
        buffer = io.StringIO()
        nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :])

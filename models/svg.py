"""A matplotlib figure as SVG text that can stand inside an HTML page."""

import io
import re
from typing import Final

import matplotlib
from matplotlib.figure import Figure

_STYLE: Final = {"svg.fonttype": "none", "svg.hashsalt": "astrolabe"}
"""Text stays text, which keeps it small; a fixed salt for ids gives the same bytes again."""


def svg_of(figure: Figure) -> str:
    """The picture without prolog, dates and namespaces; the same figure gives the same bytes."""
    with matplotlib.rc_context(_STYLE):
        buffer = io.StringIO()
        nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :])

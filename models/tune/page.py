"""tune.html: one page that needs nothing but itself, with the front drawn and the figures below.

No scripts, fonts or images are loaded. Text follows the reader's light or dark setting, the picture
stays on white; kinds are told apart by shape too. The table has the figures of every survivor, and
a keyboard can scroll it.
"""

import re
from html import escape
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, StrMethodFormatter

from models.svg import svg_of
from models.tune.candidate import Measurement
from models.tune.goal import P99_MARGIN
from models.tune.report import HEADS, Report, cells
from service.atomic import write_text

PAGE_FILE: Final = "tune.html"
_FEWEST_MISSED = 1e-4  # the scale of recall ends at 0.9999
# Marks and colours of the kinds: Okabe and Ito's palette, darkened for thin marks on white.
_LOOKS: Final = (
    *(("o", "#005f99"), ("s", "#b34700"), ("^", "#00694c"), ("D", "#8a3d72")),
    *(("v", "#6d5a00"), ("P", "#1b6c8c"), ("X", "#5b4bb0"), ("*", "#a02020")),
)
_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fff; --faint: #6b6b6b;
  --line: #d9d9d9; --good: #00694c; --bad: #a02020; --focus: #005f99; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --paper: #161616; --faint: #a6a6a6;
  --line: #3d3d3d; --good: #4fd1a5; --bad: #ff8f8f; --focus: #6cb8ee; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.verdict { padding: .6rem 1rem; border-left: .4rem solid var(--good); }
.verdict.bad { border-color: var(--bad); }
.note { color: var(--faint); }
svg { width: 100%; height: auto; background: #fff; }
.wide { overflow-x: auto; } .wide:focus-visible { outline: 2px solid var(--focus); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
caption { text-align: left; color: var(--faint); padding-bottom: .4rem; }
th, td { white-space: nowrap; padding: .25rem .7rem; text-align: right;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, tbody th { text-align: left; }
tbody th { font-weight: 400; }
tr.chosen-row th, tr.chosen-row td { font-weight: 700; }
"""


def write_page(report: Report, folder: Path) -> Path:
    """Draw the report; returns the page's path."""
    bad = "" if report.chosen else " bad"
    parts = [
        f"<h1>Tuning of {escape(report.name)}</h1>",
        f'<p class="verdict{bad}">{escape(report.verdict)}</p>',
        f"<p>Asked for: {escape(str(report.goal))}, on {escape(report.machine)}, "
        f"{report.n_labels:,} labels. A chosen point keeps {P99_MARGIN:.0%} below the p99 that is "
        "asked for, and holds the recall less two standard errors.</p>",
        "<h2>Recall against time</h2>",
        _drawing(report) if report.last else "",
        "<h2>The figures</h2>",
        _table(report),
        _notes(report),
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Tuning of {escape(report.name)}</title><style>{_STYLE}</style></head>\n<body>"
        "<main>\n" + "\n".join(parts) + "\n</main></body></html>\n"
    )
    path = folder / PAGE_FILE
    write_text(path, page)
    return path


def _drawing(report: Report) -> str:
    """Recall against p99 as SVG, both by their logarithms; every mark says what it is."""
    figure = Figure(figsize=(8.6, 4.6), layout="constrained")
    axes = figure.add_subplot()
    shown = [*report.earlier, *report.last]
    kinds = sorted({each.candidate.build.kind for each in shown})
    looks = {kind: _LOOKS[place % len(_LOOKS)] for place, kind in enumerate(kinds)}
    said = {f"mark-{place}": _words(each) for place, each in enumerate(shown)}
    for name, each in zip(said, shown, strict=True):
        mark, colour = looks[each.candidate.build.kind]
        faint = 1.0 if each in report.last else 0.3
        axes.plot(*_place(each), mark, color=colour, alpha=faint, markersize=8, gid=name)
    _front(axes, report)
    for kind, (mark, colour) in looks.items():
        axes.plot([], [], mark, color=colour, label=kind)
    _frame(axes, report)
    return _accessible(svg_of(figure), report, said)


def _place(found: Measurement) -> tuple[float, float]:
    return found.timing.p99, max(1 - found.recall, _FEWEST_MISSED)


def _front(axes: Axes, report: Report) -> None:
    # Bytes are a third objective, so a slower one can be on the front with less recall: the line
    # joins only those that rise.
    path, best = [], -1.0
    for each in report.front:
        if each.recall > best:
            best = each.recall
            path.append(_place(each))
    axes.plot(*zip(*path, strict=True), color="#6b6b6b", linewidth=1.2, zorder=1)
    if report.chosen:
        axes.plot(*_place(report.chosen), "o", color="#1c1c1c", fillstyle="none", markersize=16)


def _frame(axes: Axes, report: Report) -> None:
    """Scales, the goal's limits and the legend."""
    goal = report.goal
    if goal.p99_us is not None:
        axes.axvline(goal.p99_us, color="#1c1c1c", linewidth=0.8, linestyle="--")
    if goal.recall is not None:
        missed = max(1 - goal.recall, _FEWEST_MISSED)
        axes.axhline(missed, color="#1c1c1c", linewidth=0.8, linestyle="--")
    axes.set_xlabel("p99 of a search, us (log)")
    axes.set_ylabel("recall@10 (log of what is missed)")
    axes.set(xscale="log", yscale="log")
    most_missed = max(_place(each)[1] for each in (*report.earlier, *report.last))
    axes.set_ylim(max(1.3 * most_missed, 10 * _FEWEST_MISSED), 0.8 * _FEWEST_MISSED)
    axes.margins(x=0.1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(_recall_tick))
    axes.grid(visible=True, which="major", color="#e5e5e5")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", frameon=False)


def _recall_tick(missed: float, _: int) -> str:
    """The recall at a tick; the scale ends at 0.9999, where whatever misses less is drawn too.

    >>> _recall_tick(0.02, 0), _recall_tick(1e-4, 0)
    ('0.98', '≥ 0.9999')
    """
    return f"{'≥ ' if missed <= 1.001 * _FEWEST_MISSED else ''}{round(1 - missed, 4):g}"


def _words(found: Measurement) -> str:
    return (
        f"{found.candidate}: recall {found.recall:.4f}, p99 {found.timing.p99:.0f} us, "
        f"{found.n_queries:,} queries"
    )


def _accessible(svg: str, report: Report, said: dict[str, str]) -> str:
    """Give the picture a name and a summary, and each mark its words, which a pointer shows."""
    summary = (
        f"{len(report.last)} index settings by 99th percentile of search time and recall at 10; "
        f"{len(report.front)} of them form the Pareto front. The table below has every figure."
    )
    # HTML allows no XML prolog inside a page and needs no namespace addresses.
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :])
    for name, words in said.items():
        group = f'<g id="{name}">'
        svg = svg.replace(group, f"{group}<title>{escape(words)}</title>")
    start, rest = svg.split(">", 1)
    return (
        f'{start} role="img" aria-labelledby="drawn said"><title id="drawn">Recall against time'
        f'</title><desc id="said">{escape(summary)}</desc>{rest}'
    )


def _table(report: Report) -> str:
    front = {each.candidate for each in report.front}
    chosen = report.chosen.candidate if report.chosen else None
    rows = []
    for found in sorted(report.last, key=lambda each: each.timing.p99):
        style = ' class="chosen-row"' if found.candidate == chosen else ""
        status = "chosen" if found.candidate == chosen else "front" * (found.candidate in front)
        name, *figures = cells(found)
        inner = "".join(f"<td>{escape(figure)}</td>" for figure in [*figures, status])
        rows.append(f'<tr{style}><th scope="row">{escape(name)}</th>{inner}</tr>')
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in [*HEADS, "is"])
    n_queries = report.last[0].n_queries if report.last else 0
    return (
        '<div class="wide" role="region" aria-label="The figures" tabindex="0"><table>'
        f"<caption>Measured on {n_queries:,} validation queries, the fastest first.</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _notes(report: Report) -> str:
    return (
        '<p class="note">Times are of one query at a time on one thread, in random order: of each '
        "query the lower quartile of several passes. Clocked p99 is of a single "
        "pass, with all that the machine did in between; cold is with other data read through the "
        "caches before each query. "
        "An index is named by what it has otherwise than by default. "
        "Recall@10 is against the same scores searched exhaustively, "
        "P@1 loss against exact search with the trained label vectors, in points. MB are of the "
        "index files, which are memory-mapped. Faint marks were measured on fewer queries and "
        f'left out.</p><p class="note"><code>{escape(report.command)}</code></p>'
    )

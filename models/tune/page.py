"""tune.html: one page that needs nothing but itself, with the front drawn and the figures below.

No scripts, fonts or images are loaded. Colours follow the reader's light or dark setting; kinds are
told apart by shape too. All that the drawing shows is in the table, which a keyboard can scroll.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

from models.tune.candidate import Measurement
from models.tune.goal import P99_MARGIN
from models.tune.report import HEADS, Report, cells
from service.atomic import write_atomic

PAGE_FILE: Final = "tune.html"
_WIDTH, _HEIGHT = 860, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 20, 24, 52
_FEWEST_MISSED = 1e-4  # the scale of recall ends at 0.9999
_MARKS: Final = (
    "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0",
    "M-5,-5h10v10h-10z",
    "M0,-6l6,11h-12z",
    "M0,-7l6,7l-6,7l-6,-7z",
    "M-6,-5h12l-6,11z",
    "M-2,-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
    "M-6,-3h12v6h-12z",
    "M-3,-6h6v12h-6z",
)
_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fff; --faint: #6b6b6b;
  --line: #d9d9d9; --good: #00694c;
  --k0: #005f99; --k1: #b34700; --k2: #00694c; --k3: #8a3d72;
  --k4: #6d5a00; --k5: #1b6c8c; --k6: #5b4bb0; --k7: #a02020; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --paper: #161616; --faint: #a6a6a6;
  --line: #3d3d3d; --good: #4fd1a5;
  --k0: #6cb8ee; --k1: #f2a35e; --k2: #4fd1a5; --k3: #e79cc9;
  --k4: #e3cf5a; --k5: #7fd3ea; --k6: #b5aaff; --k7: #ff8f8f; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.verdict { padding: .6rem 1rem; border-left: .4rem solid var(--good); }
.verdict.bad { border-color: var(--k7); }
.note { color: var(--faint); }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font-size: 13px; }
.axis { stroke: var(--line); } .limit { stroke: var(--ink); stroke-dasharray: 6 4; }
.front { fill: none; stroke: var(--faint); stroke-width: 1.5; }
.earlier { opacity: .3; } .chosen { fill: none; stroke: var(--ink); stroke-width: 2; }
.wide { overflow-x: auto; } .wide:focus-visible { outline: 2px solid var(--k0); }
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
    write_atomic(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


@dataclass(frozen=True, slots=True)
class _Scale:
    """p99 in us to the right and missed neighbours downwards, both by their logarithms."""

    low_us: float
    high_us: float
    most_missed: float

    @classmethod
    def over(cls, shown: Sequence[Measurement], limit_us: float | None) -> "_Scale":
        times = [each.timing.p99 for each in shown] + ([limit_us] if limit_us else [])
        most = max(1 - each.recall for each in shown)
        return cls(min(times) / 1.3, max(times) * 1.3, max(1.3 * most, 10 * _FEWEST_MISSED))

    def x(self, p99_us: float) -> float:
        share = math.log(p99_us / self.low_us) / math.log(self.high_us / self.low_us)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, recall: float) -> float:
        missed = max(1 - recall, _FEWEST_MISSED)
        share = math.log(missed / _FEWEST_MISSED) / math.log(self.most_missed / _FEWEST_MISSED)
        return _TOP + share * (_HEIGHT - _TOP - _BOTTOM)


def _drawing(report: Report) -> str:
    shown = [*report.earlier, *report.last]
    scale = _Scale.over(shown, report.goal.p99_us)
    kinds = sorted({each.candidate.build.kind for each in shown})
    places = {kind: place % len(_MARKS) for place, kind in enumerate(kinds)}
    summary = (
        f"{len(report.last)} index settings by 99th percentile of search time and recall at 10; "
        f"{len(report.front)} of them form the Pareto front. The table below has every figure."
    )
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="drawn said">',
        f'<title id="drawn">Recall against time</title><desc id="said">{escape(summary)}</desc>',
        *_axes(scale),
        *_limits(report, scale),
        *(_mark(each, scale, places, "earlier") for each in report.earlier),
        _front(report, scale),
        *(_mark(each, scale, places, "") for each in report.last),
    ]
    if report.chosen:
        x, y = scale.x(report.chosen.timing.p99), scale.y(report.chosen.recall)
        parts.append(f'<circle class="chosen" cx="{x:.1f}" cy="{y:.1f}" r="11"/>')
    return "\n".join([*parts, *_legend(places), "</svg>"])


def _axes(scale: _Scale) -> list[str]:
    parts = []
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for us in _ticks(scale.low_us, scale.high_us):
        x = scale.x(us)
        parts.append(f'<path class="axis" d="M{x:.1f},{_TOP}V{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{us:g}</text>')
    for missed in _ticks(_FEWEST_MISSED, scale.most_missed):
        y = scale.y(1 - missed)
        parts.append(f'<path class="axis" d="M{_LEFT},{y:.1f}H{right}"/>')
        label = f"{'≥ ' if missed == _FEWEST_MISSED else ''}{round(1 - missed, 4):g}"
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    middle = (_LEFT + right) / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 10}" text-anchor="middle">p99 of a search, us</text>'
    )
    parts.append(
        f'<text transform="translate(16 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        "recall@10</text>"
    )
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten between two numbers.

    >>> _ticks(30, 600)
    [50.0, 100.0, 200.0, 500.0]
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{step}e{decade}") for decade in decades for step in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def _limits(report: Report, scale: _Scale) -> list[str]:
    goal, parts = report.goal, []
    if goal.p99_us is not None:
        x = scale.x(goal.p99_us)
        parts.append(f'<path class="limit" d="M{x:.1f},{_TOP}V{_HEIGHT - _BOTTOM}"/>')
    if goal.recall is not None:
        y = scale.y(goal.recall)
        parts.append(f'<path class="limit" d="M{_LEFT},{y:.1f}H{_WIDTH - _RIGHT}"/>')
    return parts


def _front(report: Report, scale: _Scale) -> str:
    # Bytes are a third objective, so a slower one can be on the front with less recall: the line
    # joins only those that rise.
    path, best = [], -1.0
    for each in report.front:
        if each.recall > best:
            best = each.recall
            path.append(f"{scale.x(each.timing.p99):.1f},{scale.y(each.recall):.1f}")
    return f'<polyline class="front" points="{" ".join(path)}"/>'


def _mark(found: Measurement, scale: _Scale, places: dict[str, int], style: str) -> str:
    place = places[found.candidate.build.kind]
    x, y = scale.x(found.timing.p99), scale.y(found.recall)
    said = (
        f"{found.candidate}: recall {found.recall:.4f}, p99 {found.timing.p99:.0f} us, "
        f"{found.n_queries:,} queries"
    )
    return (
        f'<path class="{style}" transform="translate({x:.1f} {y:.1f})" d="{_MARKS[place]}" '
        f'style="fill: var(--k{place})"><title>{escape(said)}</title></path>'
    )


def _legend(places: dict[str, int]) -> list[str]:
    parts = []
    for row, (kind, place) in enumerate(places.items()):
        x, y = _WIDTH - _RIGHT - 130, _HEIGHT - _BOTTOM - 16 - 18 * (len(places) - 1 - row)
        parts.append(
            f'<path transform="translate({x} {y})" d="{_MARKS[place]}" '
            f'style="fill: var(--k{place})"/>'
            f'<text x="{x + 12}" y="{y + 4}">{escape(kind)}</text>'
        )
    return parts


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

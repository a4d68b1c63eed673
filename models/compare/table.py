"""A comparison as Markdown, for a file of its own and between markers of a page.

Two tables, one of quality and one of cost, since one would be too wide to read or to review.
"""

import textwrap
from pathlib import Path

from models.compare.record import Comparison, Provenance, Row
from models.errors import ComparisonError
from service.atomic import write_atomic

TABLE_FILE = "comparison.md"
_FIGURES = {
    "P@1": "p1",
    "P@3": "p3",
    "P@5": "p5",
    "nDCG@3": "ndcg3",
    "nDCG@5": "ndcg5",
    "PSP@1": "psp1",
    "PSP@3": "psp3",
    "PSP@5": "psp5",
    "R@100": "r100",
}
_COSTS = ("training s", "CPU s", "model MB", "one query p50 ms", "p99 ms")
_WIDTH = 110  # of a line of text in docs/


def as_markdown(comparison: Comparison) -> str:
    """Both tables, the data they are about, and the runs that measured them."""
    subject = comparison.subject
    lines = [
        *_table(list(_FIGURES), [(row.system, _quality(row)) for row in comparison.rows]),
        "",
        *_table(list(_COSTS), [(row.system, _cost(row)) for row in comparison.rows]),
        "",
        _wrapped(
            f"{subject.data}, {subject.fields}: {subject.n_train:,} training points, "
            f"{subject.n_test:,} test points, {subject.n_labels:,} labels; propensities with "
            f"A = {subject.propensity_a:g}, B = {subject.propensity_b:g}."
        ),
        *_provenance(comparison.rows),
    ]
    return "\n".join(lines) + "\n"


def write_table(comparison: Comparison, folder: Path) -> None:
    """Leave the table in the folder."""
    text = as_markdown(comparison)
    write_atomic(folder / TABLE_FILE, lambda path: path.write_text(text, "utf-8"))


def check_markers(page: Path, name: str) -> None:
    """Make sure that a page has a place for the table. Raises ComparisonError."""
    _around(page, name)


def write_between_markers(comparison: Comparison, page: Path, name: str) -> None:
    """Put the table between `<!-- compare:NAME -->` and `<!-- /compare:NAME -->` of a page.

    Raises ComparisonError where the markers are not there once each, in this order.
    """
    before, after = _around(page, name)
    text = f"{before}\n{as_markdown(comparison)}{after}"
    write_atomic(page, lambda path: path.write_text(text, "utf-8"))


def _around(page: Path, name: str) -> tuple[str, str]:
    """What stands up to and with the opening marker, and from the closing marker on."""
    opening, closing = f"<!-- compare:{name} -->", f"<!-- /compare:{name} -->"
    if not page.is_file():
        raise ComparisonError(f"{page} is not there: --into names a page with {opening} in it")
    text = page.read_text(encoding="utf-8")
    start, end = text.find(opening), text.find(closing)
    if not (text.count(opening) == text.count(closing) == 1 and start < end):
        raise ComparisonError(
            f"{page}: expected {opening} and, after it, {closing}, once each: put them where the "
            "table is to stand"
        )
    return text[: start + len(opening)], text[end:]


def _table(heads: list[str], rows: list[tuple[str, list[str]]]) -> list[str]:
    return [
        f"| {' | '.join(['system', *heads])} |",
        "|---|" + "---:|" * len(heads),
        *(f"| {' | '.join([system, *cells])} |" for system, cells in rows),
    ]


def _quality(row: Row) -> list[str]:
    return [f"{row.metrics[name]:.2f}" for name in _FIGURES.values()]


def _cost(row: Row) -> list[str]:
    return [
        _whole(row.train_seconds),
        _whole(row.train_cpu_seconds),
        f"{row.model_bytes / 1e6:.1f}",
        f"{row.query_ms_p50:.2f}",
        f"{row.query_ms_p99:.2f}",
    ]


def _whole(seconds: float | None) -> str:
    """Seconds without a point, tenths below ten.

    >>> _whole(None), _whole(3.14159), _whole(1234.5)
    ('-', '3.1', '1,234')
    """
    if seconds is None:
        return "-"
    return f"{seconds:.1f}" if seconds < 10 else f"{seconds:,.0f}"


def _provenance(rows: tuple[Row, ...]) -> list[str]:
    """One paragraph a run; with the names of its systems where there was more than one run."""
    runs: dict[Provenance, list[Row]] = {}
    for row in rows:
        runs.setdefault(row.measured_by, []).append(row)
    lines = []
    for run, measured in sorted(runs.items(), key=lambda item: (item[0].date, item[0].command)):
        who = "; ".join(f"{row.system}: {row.version}" for row in measured)
        told = f"`{run.command}`, {run.machine}, {run.date}, commit {run.revision} ({who})."
        lines += ["", _wrapped(told)]
    return lines


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)

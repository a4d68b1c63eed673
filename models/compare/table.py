"""Writes a comparison as Markdown, into a file of its own or between two markers of a page.

There are two tables, quality and cost, because one would be too wide to read.
"""

import textwrap
from pathlib import Path

from models.compare.record import Comparison, Difference, Provenance, Row
from models.errors import ComparisonError
from service.atomic import write_text

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
_WIDTH = 110  # characters in a line of docs/


def as_markdown(comparison: Comparison) -> str:
    """Both tables, a line on the data, and the runs that measured the rows."""
    subject = comparison.subject
    lines = [
        *_table(list(_FIGURES), [(row.system, _quality(row)) for row in comparison.rows]),
        "",
        *_differences(comparison.differences),
        *_unseen(comparison.rows),
        *_table(list(_COSTS), [(row.system, _cost(row)) for row in comparison.rows]),
        "",
        _wrap(
            f"{subject.data}, {subject.fields}: {subject.n_train:,} training points, "
            f"{subject.n_test:,} test points, {subject.n_labels:,} labels; propensities with "
            f"A = {subject.propensity_a:g}, B = {subject.propensity_b:g}."
        ),
        *_provenance(comparison.rows),
    ]
    return "\n".join(lines) + "\n"


def write_table(comparison: Comparison, folder: Path) -> None:
    """Write the tables into a file in the folder."""
    text = as_markdown(comparison)
    write_text(folder / TABLE_FILE, text)


def check_markers(page: Path, name: str) -> None:
    """Raise ComparisonError where a page lacks the markers between which the tables go."""
    _around(page, name)


def write_between_markers(comparison: Comparison, page: Path, name: str) -> None:
    """Put the tables between `<!-- compare:NAME -->` and `<!-- /compare:NAME -->` of a page.

    Raises ComparisonError where the markers are not there once each, in this order.
    """
    before, after = _around(page, name)
    text = f"{before}\n{as_markdown(comparison)}{after}"
    write_text(page, text)


def _around(page: Path, name: str) -> tuple[str, str]:
    """The page's text up to the end of the opening marker, and from the closing marker on."""
    opening, closing = f"<!-- compare:{name} -->", f"<!-- /compare:{name} -->"
    if not page.is_file():
        raise ComparisonError(f"{page} is not there: --into names a page with {opening} in it")
    text = page.read_text(encoding="utf-8")
    start, end = text.find(opening), text.find(closing)
    if not (text.count(opening) == text.count(closing) == 1 and start < end):
        raise ComparisonError(
            f"{page}: expected {opening} and, after it, {closing}, once each: put them where you "
            "want the tables"
        )
    return text[: start + len(opening)], text[end:]


def _table(heads: list[str], rows: list[tuple[str, list[str]]]) -> list[str]:
    return [
        f"| {' | '.join(['system', *heads])} |",
        "|---|" + "---:|" * len(heads),
        *(f"| {' | '.join([system, *cells])} |" for system, cells in rows),
    ]


def _differences(differences: tuple[Difference, ...]) -> list[str]:
    """A sentence on how far the first of our systems is above each other one, if there is any."""
    if not differences:
        return []
    parts = [
        f"{each.than} by {each.p1:.2f} +- {each.p1_error:.2f} and {each.p5:.2f} +- "
        f"{each.p5_error:.2f}"
        for each in differences
    ]
    text = (
        f"{differences[0].system} is above {'; '.join(parts)}, in P@1 and P@5 with standard errors "
        "of the differences, in which points of a series vary together."
    )
    return [_wrap(text), ""]


def _unseen(rows: tuple[Row, ...]) -> list[str]:
    """A sentence with the P@1 and P@5 without test points whose series was trained on."""
    parts = [
        f"{row.system} {row.unseen['p1']:.2f} and {row.unseen['p5']:.2f}"
        for row in rows
        if row.unseen
    ]
    if not parts:
        return []
    text = "Without test points whose series has a training point, P@1 and P@5: "
    return [_wrap(f"{text}{'; '.join(parts)}."), ""]


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
    """Seconds as text: whole from ten on, with tenths below ten.

    >>> _whole(None), _whole(3.14159), _whole(1234.5)
    ('-', '3.1', '1,234')
    """
    if seconds is None:
        return "-"
    return f"{seconds:.1f}" if seconds < 10 else f"{seconds:,.0f}"


def _provenance(rows: tuple[Row, ...]) -> list[str]:
    """One paragraph for each run, with the systems that it measured and their versions."""
    runs: dict[Provenance, list[Row]] = {}
    for row in rows:
        runs.setdefault(row.measured_by, []).append(row)
    lines = []
    for run, run_rows in sorted(runs.items(), key=lambda item: (item[0].date, item[0].command)):
        systems = "; ".join(f"{row.system}: {row.version}" for row in run_rows)
        text = f"`{run.command}`, {run.machine}, {run.date}, commit {run.revision} ({systems})."
        lines += ["", _wrap(text)]
    return lines


def _wrap(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)

"""The record of a comparison: one row a system, each with what measured it, kept as JSON.

Rows of one record belong to the same data, text fields and propensities, so that they may stand in
one table. Measuring is compare.py; the table and the charts are comparison_report.py and
comparison_charts.py.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from models.errors import ComparisonError
from service.atomic import write_atomic

COMPARISON_FILE: Final = "comparison.json"
OURS: Final = "Astrolabe"
"""Name of our own systems starts with it; the charts mark them."""


@dataclass(frozen=True, slots=True)
class ComparedData:
    """What all rows have in common: data, split, text, propensity constants, filtered pairs."""

    data: str
    data_sha256: str
    fields: str
    n_train: int
    n_test: int
    n_labels: int
    propensity_a: float
    propensity_b: float
    filtered: int = 0


@dataclass(frozen=True, slots=True)
class Provenance:
    """The run that measured a row."""

    command: str
    machine: str
    date: str
    revision: str


@dataclass(frozen=True, slots=True)
class Row:
    """One system's figures, in percent; `digest` changes whenever the system does.

    Seconds are of training; None where they are not known. Milliseconds are of one query.
    """

    system: str
    version: str
    digest: str
    settings: dict[str, Any]
    metrics: dict[str, float]
    train_seconds: float | None
    train_cpu_seconds: float | None
    model_bytes: int
    query_ms_p50: float
    query_ms_p99: float
    measured_by: Provenance


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows on one subject, the best P@1 first."""

    subject: ComparedData
    rows: tuple[Row, ...] = ()

    def find(self, system: str, digest: str) -> Row | None:
        """The row of exactly this system, if it was measured before."""
        return next((r for r in self.rows if (r.system, r.digest) == (system, digest)), None)

    def with_row(self, row: Row) -> "Comparison":
        """The same with this row, in the place of an older one of the same system."""
        rows = [kept for kept in self.rows if kept.system != row.system]
        rows.append(row)
        rows.sort(key=lambda each: (-each.metrics["p1"], each.system))
        return replace(self, rows=tuple(rows))

    def save(self, folder: Path) -> None:
        """Write the record into the folder, whole or not at all."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"
        write_atomic(folder / COMPARISON_FILE, lambda path: path.write_text(text, "utf-8"))


def open_comparison(folder: Path, subject: ComparedData) -> Comparison:
    """What the folder holds on this subject, or an empty record; the folder is made.

    Raises ComparisonError where it holds rows on another subject, or no record.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / COMPARISON_FILE
    if not path.is_file():
        return Comparison(subject)
    try:
        raw = json.loads(path.read_bytes())
        rows = tuple(_row(each) for each in raw["rows"])
        found = ComparedData(**raw["subject"])
    except (ValueError, KeyError, TypeError) as exc:
        raise ComparisonError(
            f"{path} is no comparison ({exc!r}): remove it or name another --out"
        ) from exc
    if found != subject:
        raise ComparisonError(
            f"{path} compares on {_said(found)}, this run on {_said(subject)}: name another --out"
        )
    return Comparison(subject, rows)


def _row(raw: dict[str, Any]) -> Row:
    return Row(**raw | {"measured_by": Provenance(**raw["measured_by"])})


def _said(subject: ComparedData) -> str:
    return (
        f"{subject.data} {subject.data_sha256[:12]} ({subject.fields}, "
        f"A={subject.propensity_a}, B={subject.propensity_b})"
    )

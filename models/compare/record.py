"""The record of a comparison, a JSON file: one row a system, with the run that measured it.

All rows of one record have the same data, text fields and propensities, so that they may stand in
one table. bench.py measures the rows, table.py and charts.py show them.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from models.errors import ComparisonError
from models.quality.groups import Groups, clustered_error
from service.atomic import write_text

COMPARISON_FILE: Final = "comparison.json"
OURS: Final = "Astrolabe"
"""The names of our own systems start with it; the charts give them a mark of their own."""


@dataclass(frozen=True, slots=True)
class ComparedData:
    """The data, text, propensity constants and number of filtered pairs that all rows share."""

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
    """One system's figures. Metrics are in percent, milliseconds are those of one query.

    `digest` changes whenever the system does. Training seconds are None where no run recorded them.
    `errors` are standard errors of the metrics, `unseen` the metrics without test points whose
    series was trained on. `right` has the number of right labels among the first (`p1`) and the
    first five (`p5`) of each test point with a label, one digit a point. These three are empty in
    rows of older code.
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
    errors: dict[str, float] = field(default_factory=dict)
    unseen: dict[str, float] = field(default_factory=dict)
    right: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Difference:
    """By how much `system` is above `than` on the same test points, in points of P@1 and of P@5.

    Standard errors are paired, and let points of a series vary together.
    """

    system: str
    than: str
    p1: float
    p1_error: float
    p5: float
    p5_error: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rows of systems on the same data (`subject`), the best P@1 first."""

    subject: ComparedData
    rows: tuple[Row, ...] = ()

    differences: tuple[Difference, ...] = ()

    def with_differences(self, groups: Groups) -> "Comparison":
        """A copy that says how far the best of our own systems is from each other one.

        `groups` (n_test,) are the series of the test points with a label. Rows of older code, which
        do not say how each point went, are left out.
        """
        rows = [row for row in self.rows if row.right]
        first = next((row for row in rows if row.system.startswith(OURS)), None)
        others = [row for row in rows if row is not first]
        found = () if first is None else tuple(_difference(first, row, groups) for row in others)
        return replace(self, differences=found)

    def find(self, system: str, digest: str) -> Row | None:
        """The row of exactly this system, None where no run has measured it."""
        return next((r for r in self.rows if (r.system, r.digest) == (system, digest)), None)

    def with_row(self, row: Row) -> "Comparison":
        """A copy with this row, without an older row of the same system."""
        rows = [other for other in self.rows if other.system != row.system]
        rows.append(row)
        rows.sort(key=lambda each: (-each.metrics["p1"], each.system))
        return replace(self, rows=tuple(rows))

    def save(self, folder: Path) -> None:
        """Write the record into the folder, whole or not at all."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"
        write_text(folder / COMPARISON_FILE, text)


def open_comparison(folder: Path, subject: ComparedData) -> Comparison:
    """Read the record in the folder; an empty record where there is none. Makes the folder.

    Raises ComparisonError where the file is no record, or a record on other data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / COMPARISON_FILE
    if not path.is_file():
        return Comparison(subject)
    try:
        raw = json.loads(path.read_bytes())
        rows = tuple(_row(each) for each in raw["rows"])
        recorded = ComparedData(**raw["subject"])
    except (ValueError, KeyError, TypeError) as exc:
        raise ComparisonError(
            f"{path} is no comparison ({exc!r}): remove it or name another --out"
        ) from exc
    if recorded != subject:
        raise ComparisonError(
            f"{path} compares on {_describe(recorded)}, this run on {_describe(subject)}: name "
            "another --out"
        )
    return Comparison(subject, rows)


def _difference(ours: Row, theirs: Row, groups: Groups) -> Difference:
    figures = {}
    for name, k in (("p1", 1), ("p5", 5)):
        right = [np.array([int(digit) for digit in row.right[name]]) for row in (ours, theirs)]
        gains = 100 * (right[0] - right[1]) / k
        figures[name] = round(float(gains.mean()), 3)
        figures[f"{name}_error"] = round(clustered_error(gains, groups), 3)
    return Difference(ours.system, theirs.system, **figures)


def _row(raw: dict[str, Any]) -> Row:
    return Row(**raw | {"measured_by": Provenance(**raw["measured_by"])})


def _describe(subject: ComparedData) -> str:
    return (
        f"{subject.data} {subject.data_sha256[:12]} ({subject.fields}, "
        f"A={subject.propensity_a}, B={subject.propensity_b})"
    )

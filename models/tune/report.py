"""The result of a tuning, which is saved as JSON, printed as a table, and drawn by `page`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from models.tune.candidate import Measurement
from models.tune.front import front_of
from models.tune.goal import P99_MARGIN, Goal
from service.atomic import write_text

REPORT_FILE: Final = "tune.json"


@dataclass(frozen=True, slots=True)
class Report:
    """The result of tuning one run on one machine.

    `last` holds the survivors, which were measured carefully on all queries. `earlier` holds the
    other candidates, each measured on fewer. `chosen` is None where no candidate meets the goal;
    `verdict` says in a sentence which was chosen or why none was.
    """

    name: str
    n_labels: int
    goal: Goal
    machine: str
    command: str
    verdict: str
    last: tuple[Measurement, ...]
    earlier: tuple[Measurement, ...]
    chosen: Measurement | None

    @property
    def front(self) -> list[Measurement]:
        """The Pareto front of the survivors by p99, recall@10 and bytes."""
        return front_of(self.last)

    def save(self, folder: Path) -> Path:
        """Write the report to `folder` atomically; returns the file's path."""
        record = {
            "name": self.name,
            "n_labels": self.n_labels,
            "goal": asdict(self.goal),
            "p99_margin": P99_MARGIN,
            "machine": self.machine,
            "command": self.command,
            "verdict": self.verdict,
            "chosen": self.chosen.as_json() if self.chosen else None,
            "front": [each.as_json() for each in self.front],
            "measured": [each.as_json() for each in (*self.last, *self.earlier)],
        }
        path = folder / REPORT_FILE
        write_text(path, json.dumps(record, indent=1) + "\n")
        return path


def last_of_each(rungs: Sequence[Sequence[Measurement]]) -> tuple[list[Measurement], ...]:
    """The survivors' measurements, and of every other candidate the one on most queries."""
    last = list(rungs[-1])
    latest = {each.candidate: each for rung in rungs for each in rung}
    survivors = {each.candidate for each in last}
    return last, [each for each in latest.values() if each.candidate not in survivors]


HEADS: Final = (
    "index and search",
    "recall@10",
    "P@1",
    "P@1 loss",
    "p50 us",
    "p99 us",
    "clocked p99",
    "cold p50",
    "cold p99",
    "MB",
)


def cells(found: Measurement) -> list[str]:
    """The cells of one measurement's row, in the order of `HEADS`."""
    timing = found.timing
    return [
        str(found.candidate),
        f"{found.recall:.4f}",
        f"{found.p_at_1:.2f}",
        f"{found.p_at_1_loss:+.2f}",
        f"{timing.p50:.0f}",
        f"{timing.p99:.0f}",
        f"{timing.clocked_p99:.0f}",
        "" if timing.cold_p50 is None else f"{timing.cold_p50:.0f}",
        "" if timing.cold_p99 is None else f"{timing.cold_p99:.0f}",
        f"{found.index_bytes / 1e6:.1f}",
    ]


def as_text(report: Report) -> str:
    """A table of the survivors for a terminal: `*` marks the front, `>` the chosen one."""
    front = {each.candidate for each in report.front}
    rows = [["", *HEADS]]
    for found in sorted(report.last, key=lambda each: each.timing.p99):
        mark = "*" if found.candidate in front else ""
        if report.chosen and found.candidate == report.chosen.candidate:
            mark = ">"
        rows.append([mark, *cells(found)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{row[0]:<1} {row[1]:<{widths[1]}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[2:], widths[2:], strict=True))
        for row in rows
    ]
    return "\n".join([*lines, "", report.verdict] if report.chosen else lines)

"""A file of measurements, one JSON object a line, so that no measurement is made twice.

Each line is appended by one write and flushed to the disk. If a kill cut off the last line, the
next opening removes what is left of it.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from models.errors import TuneError
from models.tune.candidate import Candidate, Measurement
from service.atomic import write_text

LEDGER_FILE = "measurements.jsonl"


@dataclass(frozen=True, slots=True)
class Ledger:
    """The measurements of one trained model on one machine."""

    path: Path
    machine: str
    _found: dict[tuple[str, int, bool], Measurement] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, machine: str, *, again: bool = False) -> Self:
        """Read this machine's measurements, or with `again` ignore them.

        Raises TuneError where a line is no measurement.
        """
        ledger = cls(path, machine)
        if not path.is_file():
            return ledger
        text = path.read_text(encoding="utf-8")
        whole, newline, torn = text.rpartition("\n")
        if torn:
            write_text(path, whole + newline)
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                raw = json.loads(line)
                found = Measurement.from_json(raw["found"])
                where, last = raw["machine"], raw["last"]
            except (ValueError, KeyError, TypeError) as exc:
                raise TuneError(
                    f"{path}, line {number}: expected a measurement, found {line[:80]!r}: remove "
                    "the file to measure anew"
                ) from exc
            if where == machine and not again:
                ledger._found[found.candidate.key, found.n_queries, last] = found
        return ledger

    def find(self, candidate: Candidate, n_queries: int, last: bool) -> Measurement | None:
        """The candidate's measurement on this many queries, carefully or not (`last`); or None."""
        return self._found.get((candidate.key, n_queries, last))

    def add(self, found: Measurement, last: bool) -> None:
        """Append a measurement to the file; it is on disk when this returns."""
        line = json.dumps({"machine": self.machine, "last": last, "found": found.as_json()})
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, f"{line}\n".encode())
            os.fsync(handle)
        finally:
            os.close(handle)
        self._found[found.candidate.key, found.n_queries, last] = found

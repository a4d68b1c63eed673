"""Every measurement that was made, a line of JSON each, so that none is made twice.

A line is appended by one write and flushed to the disk; the rest of a line that a kill cut off is
dropped when the file is opened again.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from models.errors import TuneError
from models.tune.candidate import Candidate, Measurement
from service.atomic import write_atomic

LEDGER_FILE = "measurements.jsonl"


@dataclass(frozen=True, slots=True)
class Ledger:
    """What was measured on one machine, of one trained model."""

    path: Path
    machine: str
    _found: dict[tuple[str, int, bool], Measurement] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, machine: str, *, again: bool = False) -> Self:
        """Read what this machine has measured; `again` ignores it. Raises TuneError."""
        ledger = cls(path, machine)
        if not path.is_file():
            return ledger
        text = path.read_text(encoding="utf-8")
        whole, newline, torn = text.rpartition("\n")
        if torn:
            write_atomic(path, lambda temporary: temporary.write_text(whole + newline, "utf-8"))
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
        """What was measured of it on as many queries, and with the last rung's care or not."""
        return self._found.get((candidate.key, n_queries, last))

    def add(self, found: Measurement, last: bool) -> None:
        """Keep a measurement: once this returns, a kill does not lose it."""
        line = json.dumps({"machine": self.machine, "last": last, "found": found.as_json()})
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, f"{line}\n".encode())
            os.fsync(handle)
        finally:
            os.close(handle)
        self._found[found.candidate.key, found.n_queries, last] = found

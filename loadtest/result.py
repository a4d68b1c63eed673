"""The result of a command as plain data, and `result.json`, the file that holds it.

A program that reads the file can rely on `schema_version`. A new field keeps the number; renaming
or removing a field raises it.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loadtest.errors import LoadTestError

SCHEMA_VERSION = 1
RESULT_FILE = "result.json"


@dataclass(frozen=True, slots=True)
class StepResult:
    """One open-loop step at one rate. Rates are queries per second.

    Latencies are the mean, percentiles and maximum of answered queries; None without an answer.
    """

    name: str  # also the name of its folder under steps/
    rate_asked: float  # the target rate
    rate_scheduled: float  # the rate of LoadGen's Poisson draw
    rate_answered: float  # usable answers per second, until the last one
    seconds: float  # planned length
    n_queries: int
    outcomes: dict[str, int]
    error_rate: float
    latency_from_schedule_ms: dict[str, float] | None
    latency_from_send_ms: dict[str, float] | None
    send_delay_ms: dict[str, float] | None  # from the scheduled time to the write, by the client
    p99_with_failures_ms: (
        float | None
    )  # a failure counts as infinitely late; None: p99 is a failure
    server_stages_ms: dict[str, float]
    loadgen: dict[str, Any]  # valid, reasons, n_queries, n_over_limit, p99_ms, scheduled_rate
    client_cpu_s: float
    connections_opened: int
    holds: bool  # LoadGen says VALID and the error rate is within --max-error-rate


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The highest rate this client sustained against the built-in responder."""

    rate: float | None
    p99_limit_ms: float
    confirmed: bool
    stopped: str


@dataclass(frozen=True, slots=True)
class Result:
    """Everything that one command measured, and its verdict."""

    command: str  # run, saturate or ceiling
    url: str
    created: str  # time of the result's making, ISO 8601 in UTC
    settings: dict[str, Any]
    steps: list[StepResult]
    answer: str | None  # name of the step that gives the result; None where no rate held
    ok: bool  # the rate holds, or the search confirmed one
    verdict: str
    warnings: list[str]
    ceiling: Ceiling | None
    server_info: dict[str, Any] | None
    machine: dict[str, str | int]
    wall_s: float
    schema_version: int = field(default=SCHEMA_VERSION)

    @property
    def answer_step(self) -> StepResult | None:
        """The step that gives the result; None where no rate held."""
        return next((step for step in self.steps if step.name == self.answer), None)

    def write(self, folder: Path) -> None:
        """Write result.json whole or not at all."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False)
        write_whole(folder / RESULT_FILE, text + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Result":
        """Read result.json. Raises LoadTestError where it has another schema version."""
        fields: dict[str, Any] = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        if fields["schema_version"] != SCHEMA_VERSION:
            raise LoadTestError(
                f"{folder / RESULT_FILE} has schema_version {fields['schema_version']}; this "
                f"version reads {SCHEMA_VERSION}. Run the test again."
            )
        fields["steps"] = [StepResult(**step) for step in fields["steps"]]
        fields["ceiling"] = Ceiling(**fields["ceiling"]) if fields["ceiling"] else None
        return cls(**fields)


def write_whole(path: Path, text: str) -> None:
    """Write a text file beside its place and rename it, so that nobody reads half a file."""
    partial = path.with_name(path.name + ".part")
    with partial.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(path)

"""Measures the client's own ceiling: the same engine against a responder that does no work.

A load test cannot see past its client. The ceiling is the highest rate the client holds under the
same p99 limit on this machine, sharing it with a server process as it does with the real one.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from loadtest.child import child_process
from loadtest.errors import LoadTestError
from loadtest.plan import StepPlan
from loadtest.result import Ceiling
from loadtest.search import SearchLimits, find_rate
from loadtest.step import OnStep, StepSeries

HOST = "127.0.0.1"
MAX_RATE = 200_000.0
SHORT_S = 20.0


@contextmanager
def responder(folder: Path) -> Iterator[str]:
    """Run the built-in responder in a child process; yields its base URL."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "responder.log"
    with child_process("loadtest.responder", HOST, log, subprocess.PIPE) as process:
        assert process.stdout is not None
        port = process.stdout.readline().decode().strip()
        if not port:
            raise LoadTestError(f"The built-in responder did not start; see {log}.")
        yield f"http://{HOST}:{port}"


def search_ceiling(
    plan: StepPlan, limits: SearchLimits, folder: Path, on_step: OnStep
) -> tuple[Ceiling, StepSeries]:
    """Search for the client's ceiling under `plan`'s p99 limit; returns the steps as well."""
    with responder(folder) as url:
        ceiling_plan = replace(
            plan,
            url=url,
            seconds=limits.seconds_per_step,
            queries=None,
            # What an overloaded step still owes at its end is given up soon.
            timeout_ms=max(plan.p99_ms, min(plan.timeout_ms, 1000.0)),
        )
        series = StepSeries(ceiling_plan, folder, on_step, kind="client-")
        found = find_rate(series.measure, limits)
    return Ceiling(found.rate, plan.p99_ms, found.confirmed, found.stopped), series


def short_ceiling(plan: StepPlan, rate: float, folder: Path, on_step: OnStep) -> Ceiling:
    """Find the ceiling to within 10 % in about SHORT_S, starting from a rate of interest."""
    limits = SearchLimits(
        start_rate=min(max(2000.0, rate), MAX_RATE),
        max_rate=MAX_RATE,
        min_rate=100.0,
        seconds_per_step=1.5,
        max_seconds=SHORT_S,
        tolerance=0.1,
    )
    return search_ceiling(plan, limits, folder, on_step)[0]

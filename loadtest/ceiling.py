"""Measures the client's own ceiling, against a responder that does no work.

A load test cannot measure a service that is faster than the client. The ceiling is the highest
rate that the client holds on this machine under the same p99 limit. The responder takes a core
beside the client, as a service on the same machine does.
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
# Over ten times what two quiet cores hold (16,000/s in docs/loadtest.md), so it limits no client.
MAX_RATE = 200_000.0
# Time budget of the search that ends every run. A choice: more time would find the ceiling more
# closely than the 10 % that a warning needs.
SHORT_S = 20.0


@contextmanager
def responder(folder: Path) -> Iterator[str]:
    """Run the built-in responder in a child process and yield its base URL.

    Raises LoadTestError where the process does not start.
    """
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
    """Search for the client's ceiling under the p99 limit of `plan`.

    Returns the ceiling and the steps that the search ran. Raises LoadTestError.
    """
    with responder(folder) as url:
        ceiling_plan = replace(
            plan,
            url=url,
            seconds=limits.seconds_per_step,
            queries=None,
            # An overloaded step ends with a backlog; the client drops it after a second at most.
            timeout_ms=max(plan.p99_ms, min(plan.timeout_ms, 1000.0)),
        )
        series = StepSeries(ceiling_plan, folder, on_step, kind="client-")
        outcome = find_rate(series.measure, limits)
    return Ceiling(outcome.rate, plan.p99_ms, outcome.confirmed, outcome.stop_reason), series


def short_ceiling(plan: StepPlan, rate: float, folder: Path, on_step: OnStep) -> Ceiling:
    """Find the ceiling to within 10 % in about SHORT_S seconds.

    The search starts at `rate`, the rate of the result that the ceiling goes with, or at 2,000/s
    where that is less. Raises LoadTestError.
    """
    limits = SearchLimits(
        start_rate=min(max(2000.0, rate), MAX_RATE),
        max_rate=MAX_RATE,
        min_rate=100.0,
        seconds_per_step=1.5,
        max_seconds=SHORT_S,
        tolerance=0.1,
    )
    return search_ceiling(plan, limits, folder, on_step)[0]

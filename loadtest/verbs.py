"""The three commands as functions that return a Result: run, saturate and find_ceiling.

They measure and judge. __main__.py calls them, writes the result and the report, and prints.
"""

import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loadtest.ceiling import search_ceiling, short_ceiling
from loadtest.headers import Headers
from loadtest.judge import describe_search, describe_step, warnings_for
from loadtest.plan import StepPlan
from loadtest.report import STEPS_FOLDER
from loadtest.result import Ceiling, Result, StepResult
from loadtest.search import SearchLimits, SearchOutcome, find_rate
from loadtest.server_info import describe_machine, read_server_info
from loadtest.step import OnStep, StepSeries, run_step
from loadtest.target import Target


@dataclass(frozen=True, slots=True)
class Session:
    """The folder of one command's files, and the function that it calls after each step.

    `with_ceiling` decides whether the command measures the client's ceiling as well. `headers` go
    with every request to the service; they may be secret.
    """

    out: Path
    on_step: OnStep
    with_ceiling: bool = True
    headers: Headers = field(default_factory=dict, repr=False)


def run(plan: StepPlan, session: Session) -> Result:
    """Measure one rate. Raises LoadTestError where the step fails to run."""
    began_s = time.monotonic()
    info = read_server_info(Target.parse(plan.url, session.headers))
    step = run_step(plan, session.out / STEPS_FOLDER / "01-run", session.headers)
    session.on_step(step)
    return Result(
        command="run",
        url=plan.url,
        settings=_settings(plan),
        steps=[step],
        answer=step.name,
        ok=step.holds,
        verdict=describe_step(step, plan),
        **_surroundings(plan, session, step, info, began_s),
    )


def saturate(plan: StepPlan, limits: SearchLimits, session: Session) -> Result:
    """Find the highest rate that holds. Raises LoadTestError where a step fails to run."""
    began_s = time.monotonic()
    info = read_server_info(Target.parse(plan.url, session.headers))
    folder = session.out / STEPS_FOLDER
    series = StepSeries(plan, folder, session.on_step, headers=session.headers)
    outcome = find_rate(series.measure, limits)
    step = series.held_at(outcome.rate)
    return Result(
        command="saturate",
        url=plan.url,
        settings=_settings(plan, limits),
        steps=series.steps,
        answer=step.name if step else None,
        ok=outcome.confirmed,
        verdict=describe_search(outcome, plan.p99_ms),
        **_surroundings(plan, session, step, info, began_s),
    )


def find_ceiling(plan: StepPlan, limits: SearchLimits, session: Session) -> Result:
    """Find the client's own ceiling, against the built-in responder.

    Raises LoadTestError where the responder or a step fails to run.
    """
    began_s = time.monotonic()
    folder = session.out / STEPS_FOLDER
    ceiling, series = search_ceiling(plan, limits, folder, session.on_step)
    outcome = SearchOutcome(ceiling.rate, ceiling.confirmed, ceiling.stopped)
    step = series.held_at(outcome.rate)
    return Result(
        command="ceiling",
        url="built-in responder",
        settings=_settings(plan, limits),
        steps=series.steps,
        answer=step.name if step else None,
        ok=outcome.confirmed,
        verdict="The client by itself: " + describe_search(outcome, plan.p99_ms),
        warnings=[],
        ceiling=ceiling,
        server_info=None,
        machine=describe_machine(),
        **_stamp(began_s),
    )


def _settings(plan: StepPlan, limits: SearchLimits | None = None) -> dict[str, Any]:
    settings = asdict(plan)
    del settings["url"]  # a field of its own in the result
    if limits is None:
        return settings
    del settings["rate"], settings["seconds"]  # each step of a search has its own
    return settings | asdict(limits)


def _surroundings(
    plan: StepPlan,
    session: Session,
    step: StepResult | None,
    info: dict[str, Any] | None,
    began_s: float,
) -> dict[str, Any]:
    """Fields of a result beside its numbers; measures the client's ceiling if the session says so.

    `step` is the one that gives the result, None where no rate held; `began_s` is monotonic.
    """
    ceiling: Ceiling | None = None
    if session.with_ceiling and step is not None:
        folder = session.out / "ceiling"
        ceiling = short_ceiling(plan, step.rate_asked, folder, session.on_step)
    return {
        "warnings": warnings_for(step, plan, ceiling, info),
        "ceiling": ceiling,
        "server_info": info,
        "machine": describe_machine(),
        **_stamp(began_s),
    }


def _stamp(began_s: float) -> dict[str, Any]:
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_s": round(time.monotonic() - began_s, 1),
    }

"""The three commands as functions: run, saturate and find_ceiling. Each returns a Result.

They measure and judge; writing files and printing is left to __main__.py, which calls them.
"""

import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loadtest.ceiling import search_ceiling, short_ceiling
from loadtest.judge import describe_found, describe_step, warnings_for
from loadtest.plan import StepPlan
from loadtest.report import STEPS_FOLDER
from loadtest.result import Ceiling, Result, StepResult
from loadtest.search import Found, SearchLimits, find_rate
from loadtest.server_info import describe_machine, read_server_info
from loadtest.step import OnStep, StepSeries, run_step
from loadtest.target import Target


@dataclass(frozen=True, slots=True)
class Session:
    """Where one command puts its files and whom it tells about each finished step."""

    out: Path
    on_step: OnStep
    with_ceiling: bool = True


def run(plan: StepPlan, session: Session) -> Result:
    """Measure one rate."""
    began_s = time.monotonic()
    info = read_server_info(Target.parse(plan.url))
    step = run_step(plan, session.out / STEPS_FOLDER / "01-run")
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
    """Find the highest rate whose p99 holds."""
    began_s = time.monotonic()
    info = read_server_info(Target.parse(plan.url))
    series = StepSeries(plan, session.out / STEPS_FOLDER, session.on_step)
    found = find_rate(series.measure, limits)
    step = series.held_at(found.rate)
    return Result(
        command="saturate",
        url=plan.url,
        settings=_settings(plan, limits),
        steps=series.steps,
        answer=step.name if step else None,
        ok=found.confirmed,
        verdict=describe_found(found, plan.p99_ms),
        **_surroundings(plan, session, step, info, began_s),
    )


def find_ceiling(plan: StepPlan, limits: SearchLimits, session: Session) -> Result:
    """Find the highest rate this client sustains against the built-in responder."""
    began_s = time.monotonic()
    folder = session.out / STEPS_FOLDER
    ceiling, series = search_ceiling(plan, limits, folder, session.on_step)
    found = Found(ceiling.rate, ceiling.confirmed, ceiling.stopped)
    step = series.held_at(found.rate)
    return Result(
        command="ceiling",
        url="built-in responder",
        settings=_settings(plan, limits),
        steps=series.steps,
        answer=step.name if step else None,
        ok=found.confirmed,
        verdict="The client by itself: " + describe_found(found, plan.p99_ms),
        warnings=[],
        ceiling=ceiling,
        server_info=None,
        machine=describe_machine(),
        **_stamp(began_s),
    )


def _settings(plan: StepPlan, limits: SearchLimits | None = None) -> dict[str, Any]:
    settings = asdict(plan)
    del settings["url"]  # stands on its own in the result
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
    """What a result about a service says beside its numbers; measures the ceiling if asked to."""
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

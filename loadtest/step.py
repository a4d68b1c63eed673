"""Steps: each is run in a worker process from its plan, and read back; a series numbers them.

The search calls a series' `measure`, so a search over real steps and one over a fake in a test
look the same from search.py.
"""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from loadtest.child import child_process
from loadtest.errors import LoadTestError
from loadtest.plan import StepPlan, enough_seconds
from loadtest.result import StepResult

PLAN_FILE = "plan.json"
STEP_FILE = "step.json"
LOG_FILE = "worker.log"


def run_step(plan: StepPlan, folder: Path) -> StepResult:
    """Carry out `plan`, leaving its files in `folder`; raises LoadTestError if it breaks down."""
    folder.mkdir(parents=True, exist_ok=True)
    plan.write(folder / PLAN_FILE)
    log = folder / LOG_FILE
    with child_process("loadtest.worker", str(folder), log) as worker:
        try:
            code = worker.wait(_patience_s(plan))
        except subprocess.TimeoutExpired as exc:
            raise LoadTestError(
                f"The step at {plan.rate:g}/s did not end in {_patience_s(plan):.0f} s; its files "
                f"are in {folder}. Ask for a lower rate."
            ) from exc
    if code != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1] if lines else f"exit code {code}"
        raise LoadTestError(f"The step at {plan.rate:g}/s broke down: {last} (see {log}).")
    return StepResult(**json.loads((folder / STEP_FILE).read_text(encoding="utf-8")))


def _patience_s(plan: StepPlan) -> float:
    """A bound on any step: its schedule, everything still owed at its end, and the arithmetic."""
    n_queries = plan.rate * plan.seconds
    return 30 + 3 * plan.seconds + 3 * plan.timeout_ms / 1000 + n_queries / 2000


OnStep = Callable[[StepResult], None]


class StepSeries:
    """Runs steps from one plan at varying rates; each step's files go under `folder`."""

    def __init__(self, plan: StepPlan, folder: Path, on_step: OnStep, kind: str = "") -> None:
        self._plan = plan
        self._folder = folder
        self._on_step = on_step
        self._kind = kind
        self.steps: list[StepResult] = []

    def measure(self, rate: float, phase: str) -> bool:
        """Run one more step and say whether the rate holds."""
        name = f"{len(self.steps) + 1:02d}-{self._kind}{phase}"
        # Another seed each time: a confirmation on the very same arrivals would confirm less.
        seed = self._plan.seed + len(self.steps)
        seconds = enough_seconds(rate, self._plan.seconds)
        plan = replace(self._plan, rate=rate, seconds=seconds, seed=seed)
        step = run_step(plan, self._folder / name)
        self.steps.append(step)
        self._on_step(step)
        return step.holds

    def held_at(self, rate: float | None) -> StepResult | None:
        """The latest step that held at a rate."""
        held = [step for step in self.steps if step.holds and step.rate_asked == rate]
        return held[-1] if held else None

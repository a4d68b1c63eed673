"""Runs steps: each in a worker process of its own; a series numbers them.

A worker reads the step's plan from a file and leaves its result in another. The search calls the
`measure` of a series, where a test gives it a function of its own.
"""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from loadtest.child import child_process
from loadtest.errors import LoadTestError
from loadtest.headers import Headers, for_worker
from loadtest.plan import StepPlan, enough_seconds
from loadtest.result import StepResult

PLAN_FILE = "plan.json"
STEP_FILE = "step.json"
LOG_FILE = "worker.log"


def run_step(plan: StepPlan, folder: Path, headers: Headers | None = None) -> StepResult:
    """Run the step `plan` in a worker process, which leaves its files in `folder`.

    `headers` go with every request, and into no file.
    Raises LoadTestError where the worker fails or does not end in time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan.write(folder / PLAN_FILE)
    log = folder / LOG_FILE
    variables = for_worker(headers or {})
    with child_process("loadtest.worker", str(folder), log, variables=variables) as worker:
        try:
            code = worker.wait(_patience_s(plan))
        except subprocess.TimeoutExpired as exc:
            raise LoadTestError(
                f"The step at {plan.rate:g}/s did not end in {_patience_s(plan):.0f} s; its files "
                f"are in {folder}. Choose a lower rate."
            ) from exc
    if code != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1] if lines else f"exit code {code}"
        raise LoadTestError(f"The step at {plan.rate:g}/s broke down: {last} (see {log}).")
    return StepResult(**json.loads((folder / STEP_FILE).read_text(encoding="utf-8")))


def _patience_s(plan: StepPlan) -> float:
    """Seconds after which a step must have ended.

    They cover the schedule, the answers that are due at its end, and the work on the samples. All
    are choices, several times what a step takes, because only a step that hangs must reach them.
    """
    n_queries = plan.rate * plan.seconds
    return 30 + 3 * plan.seconds + 3 * plan.timeout_ms / 1000 + n_queries / 2000


OnStep = Callable[[StepResult], None]


class StepSeries:
    """Runs steps of one plan at different rates, each in a folder of its own under `folder`.

    It calls `on_step` after each step. A step's name is its number, `kind` and its phase.
    """

    def __init__(
        self,
        plan: StepPlan,
        folder: Path,
        on_step: OnStep,
        kind: str = "",
        headers: Headers | None = None,
    ) -> None:
        self._plan = plan
        self._folder = folder
        self._on_step = on_step
        self._kind = kind
        self._headers = headers
        self.steps: list[StepResult] = []

    def measure(self, rate: float, phase: str) -> bool:
        """Run one more step and return whether the rate holds. Raises LoadTestError."""
        name = f"{len(self.steps) + 1:02d}-{self._kind}{phase}"
        # Each step has a seed of its own: the same arrivals again would confirm less.
        seed = self._plan.seed + len(self.steps)
        seconds = enough_seconds(rate, self._plan.seconds)
        plan = replace(self._plan, rate=rate, seconds=seconds, seed=seed)
        step = run_step(plan, self._folder / name, self._headers)
        self.steps.append(step)
        self._on_step(step)
        return step.holds

    def held_at(self, rate: float | None) -> StepResult | None:
        """The latest step that held at a rate, None where there is none."""
        steps = [step for step in self.steps if step.holds and step.rate_asked == rate]
        return steps[-1] if steps else None

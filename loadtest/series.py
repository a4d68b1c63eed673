"""Steps that belong together: numbered, each with a seed of its own, kept in the order they ran.

Its `measure` is what the search calls, so a search over real steps and one over a fake in a test
look the same from search.py.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from loadtest.plan import StepPlan, enough_seconds
from loadtest.result import StepResult
from loadtest.step import run_step

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

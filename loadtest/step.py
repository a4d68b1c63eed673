"""Runs one planned step in a worker process and reads back what it measured."""

import json
import subprocess
from pathlib import Path

from loadtest.child import child_process
from loadtest.errors import LoadTestError
from loadtest.plan import StepPlan
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

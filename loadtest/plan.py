"""The plan of one measured step: the service's address, the rate, the length and the limits.

A StepPlan is plain data. The command line builds it, `check` refuses a plan that cannot work, and
the worker process that runs the step reads it from a JSON file.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.errors import UsageError
from loadtest.target import Target

# A typing error (--rate 200000 --seconds 2000) must not become an attack on somebody's service.
# The number is a choice: 100 s at 20,000/s, the highest rate that a search tries by default.
MAX_QUERIES = 2_000_000
EFFORTS = ("fast", "balanced", "thorough", "exact")
PERCENTILE = 0.99
# LoadGen's early stopping claims a p99 with 99 % confidence. It needs 459 queries where none misses
# the limit, and about 1,000 where three do (MLPerf inference rules, "Early stopping").
CONFIDENCE = 0.99
LEAST_QUERIES = math.ceil(math.log(1 - CONFIDENCE) / math.log(PERCENTILE))
ENOUGH_QUERIES = 1000


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One open-loop step at one rate, in queries per second.

    The defaults are choices. A p99 of 20 ms is the limit that docs/results.md reports. No failure
    is allowed. 512 connections carry 25,000 queries/s where each answer takes 20 ms.
    """

    url: str
    rate: float
    seconds: float
    p99_ms: float = 20.0
    timeout_ms: float = 2000.0
    max_error_rate: float = 0.0
    k: int = 10
    effort: str = "balanced"
    queries: str | None = None
    connections: int = 512
    seed: int = 20_240_229

    def write(self, path: Path) -> None:
        """Write the plan as JSON for the worker process."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "StepPlan":
        """Read back what `write` wrote."""
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(**fields)


def check(plan: StepPlan) -> None:
    """Raise UsageError, naming the option to change, where the plan cannot work."""
    Target.parse(plan.url)
    for option, value in (
        ("--rate", plan.rate),
        ("--seconds", plan.seconds),
        ("--p99-ms", plan.p99_ms),
        ("--timeout-ms", plan.timeout_ms),
    ):
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"{option} is {value:g}; give a number above 0.")
    for option, count in (("--k", plan.k), ("--connections", plan.connections)):
        if count < 1:
            raise UsageError(f"{option} is {count}; give a whole number from 1.")
    if not 0 <= plan.seed < 2**32:
        raise UsageError(f"--seed is {plan.seed}; give a whole number from 0 to {2**32 - 1}.")
    if plan.effort not in EFFORTS:
        raise UsageError(f"--effort is {plan.effort!r}; choose one of {', '.join(EFFORTS)}.")
    if not 0 <= plan.max_error_rate <= 1:
        raise UsageError(f"--max-error-rate is {plan.max_error_rate:g}; give a share, 0 to 1.")
    if plan.timeout_ms < plan.p99_ms:
        raise UsageError(
            f"--timeout-ms ({plan.timeout_ms:g}) is below --p99-ms ({plan.p99_ms:g}), so the "
            "client would give up on answers inside the limit; raise --timeout-ms."
        )
    check_query_count(plan.rate, plan.seconds)


def enough_seconds(rate: float, seconds: float) -> float:
    """Return the seconds for a step: `seconds`, or more where `rate` gives LoadGen too few queries.

    >>> enough_seconds(1000, 8), enough_seconds(50, 8)
    (8, 20.0)
    """
    return max(seconds, ENOUGH_QUERIES / rate)


def check_enough_queries(rate: float, seconds: float) -> None:
    """Raise UsageError where rate x seconds is below LEAST_QUERIES, whatever the answers are."""
    if rate * seconds < LEAST_QUERIES:
        needed_s = LEAST_QUERIES / rate
        raise UsageError(
            f"{rate:g} queries/s for {seconds:g} s is {rate * seconds:,.3g} queries, too few "
            f"queries for a p99: it needs {LEAST_QUERIES}. Raise --rate, or --seconds to "
            f"{math.ceil(needed_s) if needed_s < MAX_QUERIES else f'{needed_s:.3g}'}."
        )


def check_query_count(rate: float, seconds: float) -> None:
    """Raise UsageError where rate x seconds is above MAX_QUERIES."""
    if rate * seconds > MAX_QUERIES:
        raise UsageError(
            f"{rate:g} queries/s for {seconds:g} s is {rate * seconds:,.0f} queries; the cap is "
            f"{MAX_QUERIES:,}. Lower the rate or the seconds."
        )

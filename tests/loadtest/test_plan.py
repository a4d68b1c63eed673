"""What a plan refuses, and in which words."""

from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.errors import UsageError
from loadtest.plan import StepPlan, check

GOOD = StepPlan(url="http://127.0.0.1:8000", rate=200, seconds=20)


def test_a_good_plan_passes_and_survives_the_trip_to_the_worker(tmp_path: Path):
    check(GOOD)
    GOOD.write(tmp_path / "plan.json")
    assert StepPlan.read(tmp_path / "plan.json") == GOOD


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"rate": 0.0}, "--rate is 0"),
        ({"rate": float("nan")}, "--rate is nan"),
        ({"seconds": float("inf")}, "--seconds is inf"),
        ({"k": 0}, "--k is 0"),
        ({"effort": "frantic"}, "choose one of fast, balanced"),
        ({"max_error_rate": 1.5}, "give a share"),
        ({"timeout_ms": 10.0}, "raise --timeout-ms"),
        ({"rate": 200_000.0}, "the cap is 2,000,000"),
        ({"seed": -1}, "--seed is -1"),
        ({"url": "127.0.0.1:8000"}, "give it as http://host:port"),
        ({"url": "http://host:port"}, "is not a URL"),
        ({"url": "http://host/?q=1"}, "shorten it"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(change: dict[str, object], complaint: str):
    with pytest.raises(UsageError, match=complaint):
        check(replace(GOOD, **change))  # type: ignore[arg-type]

"""The sentences that go with a number."""

from dataclasses import replace

import pytest

from loadtest.judge import describe_search, describe_step, warnings_for
from loadtest.plan import StepPlan
from loadtest.result import Ceiling
from loadtest.search import SearchOutcome
from tests.support.results import STEP

PLAN = StepPlan(url="http://127.0.0.1:8000", rate=200, seconds=20)
INFO = {"bundle_id": "abc"}


def test_errors_are_named_even_when_loadgen_is_content():
    assert describe_step(STEP, PLAN) == (
        "INVALID: 200/s does not hold (p99 3.00 ms): 1 of 4,000 queries failed (http_429 1), "
        "more than --max-error-rate 0 allows."
    )


def test_a_rate_that_holds_is_valid():
    assert describe_step(replace(STEP, holds=True), PLAN).startswith("VALID: 200/s holds")


def test_an_unconfirmed_answer_says_so():
    assert "NOT confirmed" in describe_search(SearchOutcome(800, False, "the budget was spent"), 20)


@pytest.mark.parametrize(("ceiling_rate", "warned"), [(240.0, True), (1000.0, False)])
def test_a_rate_near_the_clients_ceiling_is_warned_about(ceiling_rate: float, warned: bool):
    ceiling = Ceiling(ceiling_rate, 20.0, True, "within tolerance")
    warnings = warnings_for(STEP, PLAN, ceiling, INFO)
    assert any("the client may be the limit" in warning for warning in warnings) == warned


def test_no_ceiling_at_all_is_warned_about():
    ceiling = Ceiling(None, 20.0, False, "not even 100/s held")
    assert "too busy to measure on" in warnings_for(STEP, PLAN, ceiling, INFO)[0]


def test_late_sending_and_exhausted_connections_are_warned_about():
    late = replace(STEP, send_delay_ms={"p99": 9.0}, connections_opened=512)
    warnings = warnings_for(late, PLAN, None, INFO)
    assert "9.0 ms late" in warnings[0]
    assert "raise --connections" in warnings[1]


def test_a_service_without_info_is_warned_about():
    assert "which bundle ran" in warnings_for(STEP, PLAN, None, None)[0]


@pytest.mark.parametrize(("report", "warned"), [(None, False), ({"ceiling": "exact"}, True)])
def test_a_service_that_may_lower_effort_is_warned_about(
    report: dict[str, str] | None, warned: bool
):
    warnings = warnings_for(STEP, PLAN, None, INFO | {"adaptive_effort": report})
    assert any("not every answer need be balanced" in warning for warning in warnings) == warned

"""Schemathesis against the running service: no 5xx, and no answer that OpenAPI does not document.

A short run; `python -m tests.bench.fuzz_api` is the long one.
"""

from collections.abc import Iterator

import pytest

from tests.support.api_fuzz import ADD, AFTER_ADD, BARE, FILTERED, FuzzReport, fuzz, fuzzed_service

pytestmark = pytest.mark.slow

EXAMPLES = 30


@pytest.fixture(scope="module", params=[BARE, FILTERED], ids=["bare", "filtered"])
def report(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FuzzReport]:
    """What the fuzzer saw of a bundle without and of one with an item filter."""
    folder = tmp_path_factory.mktemp("fuzz")
    with fuzzed_service(folder, filtered=request.param == FILTERED) as url:
        yield fuzz(url, request.param, folder, EXAMPLES)


def test_openapi_fuzz_finds_no_5xx_and_no_undocumented_answer(report: FuzzReport) -> None:
    assert not report.faults, "\n".join(report.faults)


def test_every_operation_is_fuzzed_and_has_succeeded(report: FuzzReport) -> None:
    assert len(report.operations) >= 35
    assert report.operations <= set(report.cases)
    assert report.unreached() == []


def test_labels_that_were_added_are_met_again(report: FuzzReport) -> None:
    assert report.chained(ADD) & AFTER_ADD

"""Schemathesis against the running service: no 5xx, and no answer that OpenAPI does not document.

A short run; `python -m tests.bench.fuzz_api` is the long one. All is asserted in one test, because
tests that share a fixture may be run by different processes, and each would then fuzz once more.
"""

from pathlib import Path

import pytest

from tests.support.api_fuzz import ADD, AFTER_ADD, BARE, FILTERED, fuzz, fuzzed_service

pytestmark = pytest.mark.slow

EXAMPLES = 30
CHAINS = 100


@pytest.mark.parametrize("config", [BARE, FILTERED], ids=["bare", "filtered"])
def test_fuzzing_reaches_every_operation_and_chain_and_finds_no_fault(
    config: str, tmp_path: Path
) -> None:
    """No 5xx, no undocumented answer; labels that were added are met again."""
    with fuzzed_service(tmp_path, filtered=config == FILTERED) as url:
        report = fuzz(url, config, tmp_path, EXAMPLES, CHAINS)
    assert not report.faults, "\n".join(report.faults)
    assert len(report.operations) >= 35
    assert report.operations <= set(report.cases)
    assert report.unreached() == []
    assert report.chained(ADD) & AFTER_ADD

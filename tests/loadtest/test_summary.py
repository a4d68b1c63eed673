"""The arithmetic of latencies, with failures among them."""

import numpy as np
import pytest

from loadtest.samples import Samples
from loadtest.summary import answered_rate, latency_summary, mean_stages, p99_with_failures


def make_samples(latencies_s: list[float], codes: list[int]) -> Samples:
    latencies = np.array(latencies_s)
    scheduled = np.arange(latencies.size) / 100
    return Samples(scheduled, latencies, latencies, np.array(codes))


def test_percentiles_are_in_milliseconds_and_by_rank():
    summary = latency_summary(np.arange(1, 1001) / 1000)
    assert summary == {
        "mean": 500.5,
        "p50": 501.0,
        "p90": 901.0,
        "p95": 951.0,
        "p99": 991.0,
        "p99.9": 1000.0,
        "max": 1000.0,
    }


def test_no_latencies_have_no_summary():
    assert latency_summary(np.array([])) is None


def test_failures_are_later_than_any_answer():
    one_in_a_hundred = make_samples([0.001] * 200, [200] * 198 + [504] * 2)
    three_in_two_hundred = make_samples([0.001] * 200, [200] * 197 + [504] * 3)
    assert p99_with_failures(make_samples([0.001] * 200, [200] * 199 + [504])) == 1.0
    assert p99_with_failures(one_in_a_hundred) is None
    assert p99_with_failures(three_in_two_hundred) is None


def test_the_answered_rate_counts_usable_answers_until_the_last_one():
    samples = make_samples([0.5, 0.5, 9.0, 0.97], [200, 200, 429, 200])
    assert answered_rate(samples) == pytest.approx(3.0)


@pytest.mark.parametrize("header", [b"", b"total", b"total;dur=", b"total;dur=nan", b"x;desc=y"])
def test_server_timing_without_a_duration_is_ignored(header: bytes):
    assert mean_stages([header]) == {}

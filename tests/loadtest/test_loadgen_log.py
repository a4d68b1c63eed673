"""What is read from LoadGen's logs, and what is said when they are cut short."""

from pathlib import Path

import numpy as np
import pytest

from loadtest.errors import LoadTestError
from loadtest.loadgen_log import DETAIL, TRACE, read_trace, read_verdict

SAMPLE = (
    '{{"name":"Sample","cat":"default","ph":"b","pid":1,"id":{seq},"ts":{ts},"args":'
    '{{"sample_seq":{seq},"query_seq":{seq},"sample_idx":{row},"issue_start_ns":5,'
    '"complete_ns":{done}}}}},\n'
    '{{"name":"Sample","cat":"default","ph":"e", "pid":1,"id":{seq},"ts":{ts}}},\n'
)


def test_the_trace_is_put_in_issue_order(tmp_path: Path):
    lines = [
        '{"name":"Wait","ph":"X","ts":-3.5,"args":{"key":""odd""}},\n',
        SAMPLE.format(seq=1, ts=1500.25, row=7, done=2_000_000),
        SAMPLE.format(seq=0, ts=1000.0, row=3, done=1_000_000),
    ]
    (tmp_path / TRACE).write_text("".join(lines))
    trace = read_trace(tmp_path)
    np.testing.assert_allclose(trace.scheduled_s, [0, 500.25e-6])
    np.testing.assert_array_equal(trace.query_row, [3, 7])
    np.testing.assert_allclose(trace.completed_s, [0.001, 0.002])


def test_a_log_without_a_verdict_is_no_result(tmp_path: Path):
    (tmp_path / DETAIL).write_text(':::MLLOG {"key": "loadgen_version", "value": "5"}\n')
    with pytest.raises(LoadTestError, match="without a verdict"):
        read_verdict(tmp_path)

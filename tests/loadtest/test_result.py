"""result.json: what is written is what is read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.errors import LoadTestError
from loadtest.result import RESULT_FILE, Ceiling, Result, StepResult

STEP = StepResult(
    name="01-run",
    rate_asked=200.0,
    rate_scheduled=201.0,
    rate_answered=200.5,
    seconds=20.0,
    n_queries=4000,
    outcomes={"ok": 3999, "http_429": 1},
    error_rate=0.00025,
    latency_from_schedule_ms={"mean": 1.5, "p50": 1.0, "p95": 2.0, "p99": 3.0, "p99.9": 4.0}
    | {"p90": 1.5, "max": 5.0},
    latency_from_send_ms=None,
    send_delay_ms=None,
    p99_with_failures_ms=3.0,
    server_stages_ms={"total": 0.3},
    loadgen={"valid": True, "reasons": []},
    client_cpu_s=1.0,
    connections_opened=4,
    holds=False,
)
RESULT = Result(
    command="run",
    url="http://127.0.0.1:8000",
    created="2024-02-29T12:00:00+00:00",
    settings={"p99_ms": 20.0},
    steps=[STEP],
    answer="01-run",
    ok=False,
    verdict="INVALID: ü",
    warnings=["careful"],
    ceiling=Ceiling(8000.0, 20.0, True, "within tolerance"),
    server_info={"bundle_id": "abc"},
    machine={"cpus": 2},
    wall_s=21.0,
)


def test_a_result_survives_the_round_trip(tmp_path: Path):
    RESULT.write(tmp_path)
    assert Result.read(tmp_path) == RESULT
    assert Result.read(tmp_path).answer_step == STEP


def test_nothing_half_written_is_left_beside_it(tmp_path: Path):
    RESULT.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [RESULT_FILE]


def test_the_file_states_its_schema_version(tmp_path: Path):
    RESULT.write(tmp_path)
    assert json.loads((tmp_path / RESULT_FILE).read_text())["schema_version"] == 1


def test_another_schema_version_is_refused(tmp_path: Path):
    replace(RESULT, schema_version=99).write(tmp_path)
    with pytest.raises(LoadTestError, match="schema_version 99"):
        Result.read(tmp_path)

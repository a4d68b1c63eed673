"""result.json: what is written is what is read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.errors import LoadTestError
from loadtest.result import RESULT_FILE, Result
from tests.support.results import RESULT, STEP


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

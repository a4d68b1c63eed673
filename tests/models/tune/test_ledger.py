"""What is on record is not measured twice, and a kill costs at most the line it cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import TuneError
from models.tune.candidate import Measurement, Timing
from models.tune.ledger import Ledger
from tests.support.results import tuning_measurement


def open_ledger(folder, machine="here", **more):
    return Ledger.open(folder / "measurements.jsonl", machine, **more)


def test_a_new_process_finds_what_the_old_one_measured(tmp_path):
    found = tuning_measurement(3)
    open_ledger(tmp_path).add(found, last=False)
    again = open_ledger(tmp_path)
    assert again.find(found.candidate, 1000, last=False) == found
    assert again.find(found.candidate, 1000, last=True) is None
    assert again.find(found.candidate, 500, last=False) is None
    assert again.find(tuning_measurement(4).candidate, 1000, last=False) is None


def test_another_machine_measures_for_itself(tmp_path):
    open_ledger(tmp_path).add(tuning_measurement(3), last=False)
    there = open_ledger(tmp_path, "there")
    assert there.find(tuning_measurement(3).candidate, 1000, last=False) is None
    there.add(tuning_measurement(3, p99=7), last=False)
    assert (
        open_ledger(tmp_path).find(tuning_measurement(3).candidate, 1000, False).timing.p99 == 100
    )


def test_again_forgets_nothing_on_disk_and_the_newest_counts(tmp_path):
    open_ledger(tmp_path).add(tuning_measurement(3), last=True)
    fresh = open_ledger(tmp_path, again=True)
    assert fresh.find(tuning_measurement(3).candidate, 1000, last=True) is None
    fresh.add(tuning_measurement(3, p99=7), last=True)
    assert open_ledger(tmp_path).find(tuning_measurement(3).candidate, 1000, True).timing.p99 == 7
    assert len((tmp_path / "measurements.jsonl").read_text().splitlines()) == 2


@settings(max_examples=20)
@given(st.integers(0, 400))
def test_a_line_that_a_kill_cut_off_is_dropped(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("ledger")
    ledger = open_ledger(folder)
    ledger.add(tuning_measurement(1), last=False)
    whole = ledger.path.read_bytes()
    ledger.add(tuning_measurement(2), last=False)
    both = ledger.path.read_bytes()
    ledger.path.write_bytes(both[: len(whole) + min(cut, len(both) - len(whole))])
    again = open_ledger(folder)
    assert again.find(tuning_measurement(1).candidate, 1000, last=False)
    again.add(tuning_measurement(3), last=False)
    assert open_ledger(folder).find(tuning_measurement(3).candidate, 1000, last=False)


def test_a_line_of_something_else_is_an_error_with_its_number(tmp_path):
    open_ledger(tmp_path).add(tuning_measurement(1), last=False)
    with (tmp_path / "measurements.jsonl").open("a") as file:
        file.write('{"machine": "here"}\n')
    with pytest.raises(TuneError, match=r"measurements\.jsonl, line 2"):
        open_ledger(tmp_path)


def test_a_measurement_survives_json():
    found = tuning_measurement(3, timing=Timing(1.0, 2.0, 3.0, 4.0, 5.0), own_scores=True)
    assert Measurement.from_json(found.as_json()) == found

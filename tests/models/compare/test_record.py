"""The record: what is written is read back, and rows on other data are refused."""

from dataclasses import replace

import pytest

from models.compare.record import COMPARISON_FILE, Comparison, open_comparison
from models.errors import ComparisonError
from tests.support.results import COMPARED_DATA, compared_row


def test_what_is_saved_is_read_back(tmp_path):
    comparison = (
        Comparison(COMPARED_DATA).with_row(compared_row()).with_row(compared_row("PLT", 24.0))
    )
    comparison.save(tmp_path)
    assert open_comparison(tmp_path, COMPARED_DATA) == comparison
    assert [path.name for path in tmp_path.iterdir()] == [COMPARISON_FILE]


def test_a_new_folder_is_made_and_holds_nothing(tmp_path):
    assert open_comparison(tmp_path / "a" / "b", COMPARED_DATA).rows == ()
    assert (tmp_path / "a" / "b").is_dir()


def test_the_best_stands_first_and_a_system_stands_once():
    comparison = Comparison(COMPARED_DATA).with_row(compared_row("PLT", 24.0, "old"))
    comparison = comparison.with_row(compared_row("Parabel", 26.5))
    comparison = comparison.with_row(compared_row("PLT", 30.0, "new"))
    assert [row.system for row in comparison.rows] == ["PLT", "Parabel"]
    assert comparison.find("PLT", "old") is None
    assert comparison.find("PLT", "new") == comparison.rows[0]


def test_a_record_on_other_data_is_refused(tmp_path):
    Comparison(COMPARED_DATA).save(tmp_path)
    other = replace(COMPARED_DATA, data_sha256="cd" * 32)
    with pytest.raises(ComparisonError, match=r"on shelf abababababab.* on shelf cdcdcdcdcdcd"):
        open_comparison(tmp_path, other)


@pytest.mark.parametrize("text", ["", "[]", '{"rows": [], "subject": {"data": "x"}}'])
def test_a_file_that_is_no_record_is_said_to_be_none(tmp_path, text):
    (tmp_path / COMPARISON_FILE).write_text(text)
    with pytest.raises(ComparisonError, match="is no comparison"):
        open_comparison(tmp_path, COMPARED_DATA)

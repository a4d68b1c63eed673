"""The record: what is written is read back, and rows on other data are refused."""

from dataclasses import replace

import numpy as np
import pytest

from models.compare.record import COMPARISON_FILE, Comparison, open_comparison
from models.compare.table import as_markdown
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


def test_differences_are_of_the_same_points_and_know_series():
    """Both are right on the same half; ours also on ten more, which are one series."""
    half, more = "1" * 45 + "0" * 45, ("1" * 10, "0" * 10)
    rows = [
        compared_row(system, p1, right={"p1": half + rest, "p5": half + rest})
        for system, p1, rest in (("Astrolabe a", 55.0, more[0]), ("Parabel", 45.0, more[1]))
    ]
    comparison = Comparison(COMPARED_DATA, tuple(rows)).with_row(compared_row("old", 9.0))
    alone = comparison.with_differences(np.arange(100)).differences
    [one] = comparison.with_differences(np.minimum(np.arange(100), 90)).differences
    assert (one.system, one.than, one.p1, one.p5) == ("Astrolabe a", "Parabel", 10.0, 2.0)
    assert alone[0].p1_error == pytest.approx(3.0)
    assert one.p1_error > 2 * alone[0].p1_error
    text = " ".join(as_markdown(comparison.with_differences(np.arange(100))).split())
    assert "Astrolabe a is above Parabel by 10.00 +- 3.00 and 2.00 +- 0.60, in P@1" in text


def test_the_table_says_what_is_left_without_points_of_trained_series():
    row = compared_row("Parabel", unseen={"p1": 25.5, "p5": 11.0})
    text = " ".join(as_markdown(Comparison(COMPARED_DATA, (row, compared_row("old", 9.0)))).split())
    assert "has a training point, P@1 and P@5: Parabel 25.50 and 11.00." in text

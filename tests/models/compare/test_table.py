"""The tables: every row with as many cells as heads, and only between their own markers."""

from dataclasses import replace

import pytest

from models.compare.record import Comparison
from models.compare.table import TABLE_FILE, as_markdown, write_between_markers, write_table
from models.errors import ComparisonError
from tests.support.results import COMPARED_DATA, COMPARING_RUN, compared_row


@pytest.fixture
def comparison():
    return Comparison(COMPARED_DATA).with_row(compared_row()).with_row(compared_row("PLT", 24.0))


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def tables(text):
    """Of each table in the text its lines."""
    blocks = text.split("\n\n")
    return [block.splitlines() for block in blocks if block.startswith("|")]


def test_every_row_has_a_cell_for_every_head(comparison):
    quality, cost = tables(as_markdown(comparison))
    row = {}
    for table, columns in ((quality, 10), (cost, 6)):
        head, rule, first, second = table
        assert len(cells(head)) == len(cells(rule)) == columns
        assert len(cells(first)) == len(cells(second)) == columns
        row |= dict(zip(cells(head), cells(first), strict=True))
    assert row["system"] == "Parabel"
    assert row["P@1"] == "26.50"
    assert row["P@3"] == "13.25"
    assert row["training s"] == "12"
    assert row["CPU s"] == "-"
    assert row["model MB"] == "12.3"
    assert row["one query p50 ms"] == "0.51"


def test_no_line_is_too_wide_for_the_documentation(comparison):
    command = "python -m models compare " + "--config models/configs/gutenberg-best.toml " * 9
    long_run = replace(COMPARING_RUN, command=command.strip())
    comparison = comparison.with_row(compared_row("a name of " + "x" * 30, measured_by=long_run))
    assert max(map(len, as_markdown(comparison).splitlines())) <= 120


def test_one_run_is_named_once(comparison):
    assert as_markdown(comparison).count(COMPARING_RUN.command) == 1


def test_each_run_is_named_with_its_systems(comparison):
    later = replace(COMPARING_RUN, date="2026-02-03")
    text = as_markdown(comparison.with_row(compared_row("Bonsai", measured_by=later)))
    first, second = [block for block in text.split("\n\n") if COMPARING_RUN.command in block]
    assert "Parabel" in first
    assert "Bonsai" not in first
    assert "Bonsai" in second


def test_the_tables_are_a_file_of_the_folder(comparison, tmp_path):
    write_table(comparison, tmp_path)
    assert (tmp_path / TABLE_FILE).read_text() == as_markdown(comparison)


def test_only_what_lies_between_the_markers_is_replaced(comparison, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Top\n<!-- compare:shelf -->\nold\n<!-- /compare:shelf -->\n<!-- compare:other -->\n"
    )
    for _ in range(2):  # a second time gives the same page
        write_between_markers(comparison, page, "shelf")
        table = as_markdown(comparison)
        assert page.read_text() == (
            f"# Top\n<!-- compare:shelf -->\n{table}<!-- /compare:shelf -->\n"
            "<!-- compare:other -->\n"
        )


@pytest.mark.parametrize(
    "text",
    [
        "no markers",
        "<!-- compare:shelf -->",
        "<!-- /compare:shelf -->\n<!-- compare:shelf -->",
        "<!-- compare:shelf --><!-- /compare:shelf -->\n<!-- compare:shelf -->",
    ],
)
def test_a_page_without_both_markers_in_order_is_left_alone(comparison, tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ComparisonError, match="expected <!-- compare:shelf --> and, after it"):
        write_between_markers(comparison, page, "shelf")
    assert page.read_text() == text


def test_a_page_that_is_not_there_is_an_error(comparison, tmp_path):
    with pytest.raises(ComparisonError, match="is not there"):
        write_between_markers(comparison, tmp_path / "none.md", "shelf")

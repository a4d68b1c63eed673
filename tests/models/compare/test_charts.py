"""The charts: small, repeatable to the byte, every system named."""

import xml.etree.ElementTree as ET

from models.compare.charts import LATENCY_CHART, TAIL_CHART, write_charts
from models.compare.record import Comparison
from tests.support.results import COMPARED_DATA, compared_row


def charts(folder, comparison):
    folder.mkdir()
    write_charts(comparison, folder)
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_the_same_rows_give_the_same_bytes(tmp_path):
    comparison = Comparison(COMPARED_DATA).with_row(compared_row())
    comparison = comparison.with_row(compared_row("Astrolabe bag", 33.0, query_ms_p50=0.2))
    first, second = (charts(tmp_path / name, comparison) for name in "ab")
    assert first == second
    assert set(first) == {LATENCY_CHART, TAIL_CHART}
    for svg in first.values():
        assert ET.fromstring(svg).tag.endswith("svg")
        assert "Astrolabe bag" in svg
        assert "Parabel" in svg
        assert len(svg) < 40_000


def test_a_single_system_can_be_drawn(tmp_path):
    assert len(charts(tmp_path / "one", Comparison(COMPARED_DATA).with_row(compared_row()))) == 2

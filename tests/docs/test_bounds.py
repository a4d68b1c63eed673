"""The table of what bounds a connection says what the code does, phase by phase."""

import re
from pathlib import Path

from service.edge.bounds import FRAMING_BYTES, MAX_HEADERS, PARSE_BYTES, Phase
from service.edge.closing import LINGER_BYTES, LINGER_S, STALL_S
from service.settings.settings import Settings

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("### What bounds a connection")[2].partition("\n## ")[0]
ROWS = {
    cells[0]: " | ".join(cells[1:])
    for cells in (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in SECTION.splitlines()
        if line.startswith("|")
    )
}
FIGURES = {
    "head": (f"{MAX_HEADERS} lines",),
    "chunk sizes, trailers": (f"{FRAMING_BYTES >> 10} kB",),
    "requests sent ahead": (f"{PARSE_BYTES >> 10} kB",),
    "answer not taken": (f"{STALL_S:g} s",),
    "after the last answer": (f"{LINGER_BYTES >> 20} MiB", f"{LINGER_S:g} s"),
}


def test_every_phase_has_a_row() -> None:
    assert {phase.value for phase in Phase} <= set(ROWS)


def test_every_figure_is_the_one_in_the_code() -> None:
    missing = {
        (row, figure) for row, figures in FIGURES.items() for figure in figures
        if figure not in ROWS[row]
    }  # fmt: skip
    assert not missing


def test_every_setting_named_is_one() -> None:
    names = set(re.findall(r"`ASTROLABE_(\w+)`", SECTION))
    assert names
    assert {name.lower() for name in names} <= set(Settings.model_fields)

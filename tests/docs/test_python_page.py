"""The code of docs/python.md runs, in its order, as a reader would run it."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


def test_code_of_the_page_runs(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) > 4
    names: dict[str, object] = {"bundle": tiny_bundle}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert "texts[1]: the text is blank" in capsys.readouterr().out

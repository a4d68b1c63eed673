import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.encoding.text import normalise


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("plain words", "plain words"),
        ("  both  ends ", "both ends"),
        ("tab\tnew\r\nline\x00end", "tab new line end"),
        ("e\u0301", "\u00e9"),
        ("zero\u200bwidth\ufeff", "zero width"),
        ("no\u00a0break\u3000wide", "no break wide"),
        ("\u2028", ""),
        ("", ""),
    ],
)
def test_equal_texts_become_equal(text: str, clean: str) -> None:
    assert normalise(text) == clean


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)

"""The file of what is to be served: what is written is read, and a broken one says what to do."""

from itertools import pairwise
from pathlib import Path

import pytest

from service.errors import SettingsInvalid, StateUnavailable
from service.serving.desired import (
    FILE,
    Desired,
    DesiredModel,
    read_desired,
    stamp,
    write_desired,
)

PLAIN = Desired("/b/one", {"tiny": DesiredModel("/b/one")})
CANARY = DesiredModel("/b/two", previous="/b/one", canary="/b/three", percent=12.5)


@pytest.mark.parametrize(
    "desired",
    [PLAIN, Desired("/b/one", {}), Desired("/b/über", {"tiny": CANARY, "x": DesiredModel("/x")})],
)
def test_what_is_written_is_read_and_nothing_else_is_left(tmp_path: Path, desired: Desired) -> None:
    write_desired(tmp_path, PLAIN)
    write_desired(tmp_path, desired)
    assert read_desired(tmp_path) == desired
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_without_a_file_nothing_is_desired(tmp_path: Path) -> None:
    assert read_desired(tmp_path) is None
    assert stamp(tmp_path) is None


def test_every_write_has_another_stamp(tmp_path: Path) -> None:
    stamps = []
    for _ in range(5):
        write_desired(tmp_path, PLAIN)
        assert stamp(tmp_path) == stamp(tmp_path)
        stamps.append(stamp(tmp_path))
    assert all(earlier != later for earlier, later in pairwise(stamps))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "\xff",
        "[]",
        "null",
        "{}",
        '{"configured": "/b"}',
        '{"configured": "/b", "models": []}',
        '{"configured": "/b", "models": {"tiny": null}}',
        '{"configured": "/b", "models": {"tiny": {}}}',
        '{"configured": "/b", "models": {"tiny": {"bundle": "/b", "colour": "red"}}}',
    ],
)
def test_a_broken_file_is_named_with_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text, encoding="latin-1")
    with pytest.raises(SettingsInvalid) as refused:
        read_desired(tmp_path)
    assert str(tmp_path / FILE) in refused.value.detail
    assert "remove it to serve the bundles" in refused.value.detail
    assert "\n" not in refused.value.detail


def test_a_folder_in_its_place_is_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(SettingsInvalid):
        read_desired(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateUnavailable, match=rf"gone/{FILE} cannot be written \(No such file"):
        write_desired(tmp_path / "gone", PLAIN)

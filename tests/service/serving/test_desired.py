"""What to serve, as workers and restarts read it."""

import pytest

from service.errors import SettingsInvalid
from service.serving.desired import FILE, Desired, DesiredModel, read_desired, stamp, write_desired

DESIRED = Desired("a", {"books": DesiredModel("/bundles/a", previous="/bundles/b", percent=5.0)})


def test_what_was_written_is_read_and_nothing_lies_beside_it(tmp_path):
    assert (read_desired(tmp_path), stamp(tmp_path)) == (None, None)
    write_desired(tmp_path, DESIRED)
    before = stamp(tmp_path)
    write_desired(tmp_path, DESIRED)
    assert read_desired(tmp_path) == DESIRED
    assert stamp(tmp_path) != before
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    "raw", ["", "[]", '{"configured": "a"}', '{"configured": "a", "models": {"m": {"x": 1}}}']
)
def test_a_broken_file_is_named_with_what_to_do(tmp_path, raw):
    (tmp_path / FILE).write_text(raw)
    with pytest.raises(SettingsInvalid, match=rf"{FILE} does not say .* remove it"):
        read_desired(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(SettingsInvalid, match=rf"gone/{FILE} cannot be written \(No such file"):
        write_desired(tmp_path / "gone", DESIRED)

"""A bundle appears whole or not at all."""

import errno
import os

import pytest

from models.seal.bundle_writer import publish
from service.atomic import staging_folder, write_atomic
from service.bundle.manifest import POINTER


def test_a_published_folder_is_pointed_at_and_staging_is_gone(tmp_path):
    with staging_folder(tmp_path) as folder:
        (folder / "manifest.json").write_text("{}")
        target = publish(folder, "abc")
    assert (target / "manifest.json").is_file()
    assert (tmp_path / POINTER).read_text() == "abc\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [POINTER, "abc"]


def test_a_failure_while_filling_leaves_nothing(tmp_path):
    def fill():
        with staging_folder(tmp_path) as folder:
            (folder / "encoder.onnx").write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_cleared_by_the_next(tmp_path):
    (tmp_path / ".staging-999999999").mkdir()
    with staging_folder(tmp_path) as folder:
        assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_write_that_fails_keeps_the_old_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]

"""Curves: a file that cannot be written is given up, and training never waits for it."""

import logging

import pytest

from models.training.board import Board
from tests.support.tiny_job import full_disk


@pytest.mark.parametrize("points", [100, 1000])
def test_a_full_disk_ends_the_curves_and_nothing_else(tmp_path, caplog, points):
    """100 points fit into the buffer and fail at the flush, 1,000 fail on the way."""
    board = Board(tmp_path)
    with caplog.at_level(logging.WARNING), full_disk(4096):
        for step in range(points):
            board.add_scalar("loss", 1.0, step)
        board.flush()
        board.close()
    (record,) = caplog.records
    assert record.message.startswith(str(tmp_path))
    assert record.message.endswith("gets no more curves: File too large")


def test_two_starts_in_one_second_leave_two_files(tmp_path):
    for step in (0, 5):
        board = Board(tmp_path)
        board.add_scalar("loss", 1.0, step)
        board.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert all(path.stat().st_size for path in tmp_path.iterdir())


def test_nothing_is_added_once_it_is_closed(tmp_path):
    board = Board(tmp_path)
    board.close()
    size = next(tmp_path.iterdir()).stat().st_size
    board.add_scalar("loss", 1.0, 0)
    board.close()
    assert next(tmp_path.iterdir()).stat().st_size == size

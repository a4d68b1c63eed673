"""What all peers share: a missing package says what to install, and rows are padded."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from models.compare.peers.peer import folder_bytes, padded, rows_of
from models.errors import PeerMissing
from models.extras import need


def test_a_missing_package_names_the_extra():
    with pytest.raises(PeerMissing, match=r"no_such_peer.*pip install 'astrolabe\[peers\]'"):
        need("no_such_peer")


def test_a_package_without_its_system_library_says_which(tmp_path, monkeypatch):
    said = "libgomp.so.1: cannot open shared object file"
    (tmp_path / "half_a_peer.py").write_text(f"raise OSError({said!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PeerMissing, match=f"half_a_peer cannot be imported .{said}"):
        need("half_a_peer")


def test_an_installed_module_is_given():
    assert need("numpy") is np


def test_rankings_of_no_query_have_their_columns_all_the_same():
    assert padded([], 5).shape == (0, 5)
    assert padded([[], [1]], 2).tolist() == [[-1, -1], [1, -1]]


def test_rows_come_as_columns_and_values():
    matrix = csr_matrix([[0, 2.0], [0, 0], [1.0, 3.0]])
    assert list(rows_of(matrix)) == [([1], [2.0]), ([], []), ([0, 1], [1.0, 3.0])]


def test_a_folder_weighs_what_its_files_weigh(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_bytes(b"123")
    (tmp_path / "b").write_bytes(b"45")
    assert folder_bytes(tmp_path) == 5

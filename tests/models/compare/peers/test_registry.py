"""The real peers, where they are installed, learn a small data set; their names are checked."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from models.compare.peers.peer import version_of
from models.compare.peers.registry import PEERS, choose_peers, make_peer
from models.errors import ComparisonError

PACKAGES = {
    "parabel": "omikuji",
    "bonsai": "omikuji",
    "xr-linear": "pecos",
    "napkinxc": "napkinxc",
}
N_LABELS, N_POINTS = 150, 600


@pytest.fixture(params=list(PEERS))
def peer(request, tmp_path):
    pytest.importorskip(PACKAGES[request.param], reason="the extra peers is not installed")
    return make_peer(request.param, tmp_path)


def shelf():
    """Point i has label i % 150 and that label's own feature, and noise; two rows are odd."""
    rng = np.random.default_rng(3)
    rows = np.arange(N_POINTS)
    features = np.zeros((N_POINTS, N_LABELS + 20), np.float32)
    features[rows, rows % N_LABELS] = 0.9
    features[rows, N_LABELS + rng.integers(20, size=N_POINTS)] = 0.4
    labels = np.zeros((N_POINTS, N_LABELS + 1), np.float32)  # the last label has no point
    labels[rows, rows % N_LABELS] = 1
    features[7] = 0
    labels[8] = 0
    return csr_matrix(features), csr_matrix(labels)


# PECOS leaves files for the garbage collector to close.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_real_peer_learns_and_answers_as_the_protocol_says(peer, capfd):
    features, labels = shelf()
    peer.fit(features, labels)
    ranked = peer.rank(features[:100], 10)
    assert ranked.shape == (100, 10)
    assert ranked.dtype == np.int64
    assert ranked.max() <= N_LABELS
    usual = np.setdiff1d(np.arange(100), [7, 8])
    assert (ranked[usual, 0] == usual).mean() > 0.9
    assert peer.rank(features[:0], 5).shape == (0, 5)
    assert peer.rank(features[7:8], 5).shape == (1, 5)  # a text without a known word
    for row in peer.rank(features[:5], N_LABELS + 1):
        found = row[row >= 0]
        assert len(set(found)) == len(found)
        assert (row[len(found) :] == -1).all()
    assert peer.size_bytes > 1000
    assert capfd.readouterr().out == ""


def test_a_peer_says_its_version_and_its_settings(peer):
    assert peer.version.split()[0] in ("omikuji", "libpecos", "napkinxc")
    assert peer.version == version_of(peer.version.split()[0])
    assert peer.settings
    assert peer.title


def test_names_come_in_their_order_and_once():
    assert choose_peers("napkinxc,parabel,napkinxc") == ("napkinxc", "parabel")


@pytest.mark.parametrize("names", ["", "parabel,", "none,parabel"])
def test_names_that_are_not_known_are_an_error(names):
    with pytest.raises(ComparisonError, match="is not known; there are parabel, bonsai"):
        choose_peers(names)

"""TF-IDF: unit vectors of words and pairs that two training texts share."""

import numpy as np
import pytest

from models.errors import ComparisonError

pytest.importorskip("sklearn", reason="the extra peers is not installed")

from models.compare.peers.features import TfIdf


def test_features_are_unit_vectors_of_words_and_pairs():
    tfidf = TfIdf()
    train = tfidf.fit(["white whale", "white whale hunt", "garden rose"])
    assert train.dtype == np.float32
    assert train.shape == (3, 3)  # white, whale, white whale
    lengths = np.sqrt(train.multiply(train).sum(axis=1)).A1
    assert lengths.tolist() == pytest.approx([1, 1, 0])
    assert tfidf.transform(["WHALE"]).nnz == 1
    assert tfidf.transform([""]).shape == (1, 3)
    assert tfidf.size_bytes > 100


def test_texts_that_share_no_word_are_an_error():
    with pytest.raises(ComparisonError, match="no TF-IDF features"):
        TfIdf().fit(["white whale", "garden rose"])

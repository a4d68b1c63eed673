"""Makes the peers' features: TF-IDF of words and word pairs, as unit vectors.

All peers get the same features. Vocabulary and weights come from the training texts alone.
Astrolabe has its own tokenizer and does not use them.
"""

import pickle
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from scipy.sparse import csr_matrix

from models.compare.peers.peer import version_of
from models.errors import ComparisonError
from models.extras import need

# A choice, the same for all peers: word pairs as in Astrolabe's bag, logarithmic term counts, and
# no word that only one text has.
SETTINGS: Final[dict[str, Any]] = {
    "ngram_range": (1, 2),
    "sublinear_tf": True,
    "min_df": 2,
    "norm": "l2",
}


class TfIdf:
    """scikit-learn's TfidfVectorizer with SETTINGS; its features are (n, n_features) float32."""

    def __init__(self) -> None:
        text = need("sklearn.feature_extraction.text")
        self._vectorizer = text.TfidfVectorizer(dtype=np.float32, **SETTINGS)
        self.version = version_of("scikit-learn")

    def fit(self, texts: Sequence[str]) -> csr_matrix:
        """Learn vocabulary and weights from the texts, and return their features.

        Raises ComparisonError where no word occurs in two texts.
        """
        try:
            return csr_matrix(self._vectorizer.fit_transform(texts))
        except ValueError as exc:
            raise ComparisonError(f"no TF-IDF features can be made of these texts: {exc}") from exc

    def transform(self, texts: Sequence[str]) -> csr_matrix:
        """Features of other texts, with the vocabulary and weights of `fit`."""
        return self._vectorizer.transform(texts)

    @property
    def size_bytes(self) -> int:
        """Bytes of vocabulary and weights in a file."""
        return len(pickle.dumps(self._vectorizer))

"""The peers' features: TF-IDF of words and word pairs, as unit vectors.

The same for every peer, fitted on the training texts alone. Astrolabe does not use it: it has its
own tokenizer.
"""

import pickle
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from scipy.sparse import csr_matrix

from models.compare.peers.peer import version_of
from models.errors import ComparisonError
from models.extras import need

SETTINGS: Final[dict[str, Any]] = {
    "ngram_range": (1, 2),
    "sublinear_tf": True,
    "min_df": 2,
    "norm": "l2",
}


class TfIdf:
    """scikit-learn's TfidfVectorizer under the settings above; (n, n_features) float32."""

    def __init__(self) -> None:
        text = need("sklearn.feature_extraction.text")
        self._vectorizer = text.TfidfVectorizer(dtype=np.float32, **SETTINGS)
        self.version = version_of("scikit-learn")

    def fit(self, texts: Sequence[str]) -> csr_matrix:
        """Learn vocabulary and weights from the texts, and give their features.

        Raises ComparisonError where no word occurs in two texts.
        """
        try:
            return csr_matrix(self._vectorizer.fit_transform(texts))
        except ValueError as exc:
            raise ComparisonError(f"no TF-IDF features can be made of these texts: {exc}") from exc

    def transform(self, texts: Sequence[str]) -> csr_matrix:
        """Features of texts under the vocabulary that was learnt."""
        return self._vectorizer.transform(texts)

    @property
    def size_bytes(self) -> int:
        """Bytes of vocabulary and weights as they would be stored."""
        return len(pickle.dumps(self._vectorizer))

"""XR-Linear of PECOS (Yu et al., 2022): one label tree with linear classifiers.

The tree clusters labels by the mean features of their points. PECOS 1.2.8 was written for NumPy 1
and SciPy before 1.14, and its metadata asks for them. So it is installed without its dependencies,
and this module replaces the one function that breaks on newer ones.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from models.compare.peers.peer import folder_bytes, padded, version_of
from models.extras import need

BEAM = 10  # PECOS's default
INSTALL = "pip install 'astrolabe[peers]', then pip install --no-deps libpecos==1.2.8"


class XrLinear:
    """XR-Linear with PECOS's defaults and a fixed seed. Its predict-only model in C++ ranks."""

    title = "XR-Linear"

    def __init__(self, folder: Path) -> None:
        self._xmc = need("pecos.xmc", INSTALL)
        self._model_class = need("pecos.xmc.xlinear.model", INSTALL).XLinearModel
        need("pecos.utils.smat_util", INSTALL).cs_matrix = _sparse_matrix
        self.version = version_of("libpecos")
        self.settings = {"beam": BEAM, "max_leaf_size": 100, "nr_splits": 16, "seed": 1}
        self._folder = folder
        self._model: Any = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the saved model."""
        return folder_bytes(self._folder)

    def fit(self, features: csr_matrix, labels: csr_matrix) -> None:
        """Cluster the labels, train a classifier for each node, save the model and load it."""
        embedded = self._xmc.LabelEmbeddingFactory.create(labels, features, method="pifa")
        chain = self._xmc.Indexer.gen(
            embedded,
            indexer_type="hierarchicalkmeans",
            nr_splits=self.settings["nr_splits"],
            max_leaf_size=self.settings["max_leaf_size"],
            seed=self.settings["seed"],
        )
        self._model_class.train(features, labels.tocsc(), C=chain).save(str(self._folder))
        self._model = self._model_class.load(str(self._folder), is_predict_only=True)

    def rank(self, features: csr_matrix, k: int) -> NDArray[np.int64]:
        """Beam search on one thread; label rows (n, k)."""
        scores = self._model.predict(features, beam_size=BEAM, only_topk=k, threads=1)
        rows = []
        for start, end in itertools.pairwise(scores.indptr):
            best_first = np.argsort(-scores.data[start:end], kind="stable")
            rows.append(scores.indices[start:end][best_first].tolist())
        return padded(rows, k)


def _sparse_matrix(
    parts: Any,
    kind: Any,
    shape: Any = None,
    dtype: Any = None,
    copy: bool = False,
    check_contents: bool = False,
) -> Any:
    """Replaces PECOS's constructor, which calls functions that SciPy and NumPy 2 have removed."""
    return kind(parts, shape=shape, dtype=dtype, copy=copy)

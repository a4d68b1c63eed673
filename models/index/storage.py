"""What the FAISS kinds share: centring, half-precision storage, re-scoring, writing."""

from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from service.atomic import write_atomic


def centred(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors (n, dim) without their mean: codes and clusters of these lose less.

    A query's scores all move by one constant, hence no ranking does (docs/decisions/0004).
    """
    return vectors - vectors.mean(axis=0)


def half_precision(vectors: NDArray[np.float32]) -> faiss.IndexScalarQuantizer:
    """The vectors as they are, in fp16: an exhaustive scan, and what candidates are re-scored by.

    It scans one query after the other, so that an answer does not depend on its batch; FAISS
    multiplies fp32 vectors as matrices where a batch is large, which rounds otherwise.
    """
    index = faiss.IndexScalarQuantizer(
        vectors.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    index.train(vectors)
    index.add(vectors)
    return index


def half_precision_codes(vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The bytes (n, 2 * dim) of the vectors in fp16, as FAISS stores them."""
    half = faiss.ScalarQuantizer.QT_fp16
    codec = faiss.IndexScalarQuantizer(vectors.shape[1], half)
    return np.asarray(codec.sa_encode(np.ascontiguousarray(vectors)))


def write_rescored(coarse: faiss.Index, vectors: NDArray[np.float32], path: Path) -> None:
    """Write `coarse`, which finds candidates, together with the `vectors` that re-score them."""
    write_index(rescored(coarse, half_precision(vectors)), path)


def rescored(coarse: faiss.Index, exact: faiss.Index) -> faiss.IndexRefine:
    """What `coarse` finds, scored again by `exact`; the caller keeps a reference to both."""
    both = faiss.IndexRefine(coarse, exact)
    both.own_fields = both.own_refine_index = False  # Python owns all three
    return both


def write_index(index: faiss.Index, path: Path) -> None:
    """Write an index atomically."""
    write_atomic(path, lambda temporary: faiss.write_index(index, str(temporary)))


def code_width(dim: int, wanted: int) -> int:
    """Dimensions of one 4-bit code: the most that divide `dim` and are not over `wanted`."""
    return max(width for width in range(1, min(wanted, dim) + 1) if dim % width == 0)


def at_least(vectors: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """The vectors, again and again where they are fewer than the `n` that training asks for."""
    if len(vectors) >= n:
        return vectors
    return np.ascontiguousarray(np.resize(vectors, (n, vectors.shape[1])))

"""Shared parts of the FAISS kinds: centring, half-precision storage, re-scoring, writing."""

from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from service.atomic import write_atomic


def centred(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors (n, dim) minus their mean, for which codes and clusters are more precise.

    All scores of a query change by the same constant, so rankings stay (docs/decisions/0004).
    """
    return vectors - vectors.mean(axis=0)


def half_precision(vectors: NDArray[np.float32]) -> faiss.IndexScalarQuantizer:
    """An exhaustive scan of the vectors (n, dim) in fp16, which also re-scores candidates.

    FAISS scans it query by query, so an answer does not depend on its batch. For fp32 vectors and
    large batches FAISS multiplies matrices, and that rounds differently.
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
    """Write `coarse`, which finds candidates, with the `vectors` (n, dim) that re-score them."""
    write_index(rescored(coarse, half_precision(vectors)), path)


def rescored(coarse: faiss.Index, exact: faiss.Index) -> faiss.IndexRefine:
    """An index that scores the results of `coarse` again with `exact`; the caller keeps both."""
    both = faiss.IndexRefine(coarse, exact)
    both.own_fields = both.own_refine_index = False  # Python frees all three
    return both


def write_index(index: faiss.Index, path: Path) -> None:
    """Write a FAISS index to `path`, atomically."""
    write_atomic(path, lambda temporary: faiss.write_index(index, str(temporary)))


def code_width(dim: int, limit: int) -> int:
    """Dimensions of a 4-bit code: the largest divisor of `dim` up to `limit`."""
    return max(width for width in range(1, min(limit, dim) + 1) if dim % width == 0)


def at_least(vectors: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """The vectors (m, dim), repeated up to `n` if they are fewer, because training needs `n`."""
    if len(vectors) >= n:
        return vectors
    return np.ascontiguousarray(np.resize(vectors, (n, vectors.shape[1])))

"""Compressed scans: they compare every label's code, and score the best few again exactly.

`sq8` stores a byte for each dimension. `pq-fastscan` stores four bits for each `pq_dims`
dimensions; FAISS compares the codes of 32 labels at a time in registers. Both scan all labels, so
no label is out of reach. Their cost grows with the label count, as a plain scan's does, but
`pq-fastscan` takes a sixth of the time at 12,476 labels (docs/decisions/0012).
"""

from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from models.config import IndexConfig
from models.index.kind import FaissKind
from models.index.storage import at_least, centred, code_width, write_rescored

CODES = 16
"""Number of values of a 4-bit code."""
_TRAINING_VECTORS = 1 << 16
"""Our choice: 4,096 vectors for each of the 16 values of a code."""


class Sq8(FaissKind):
    """`index.kind = "sq8"`."""

    name = "sq8"

    def _write(self, vectors: NDArray[np.float32], config: IndexConfig, path: Path) -> None:
        """Encode and write the vectors (n, dim)."""
        rows = centred(vectors)
        codes = faiss.IndexScalarQuantizer(
            rows.shape[1], faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
        codes.train(rows)
        codes.add(rows)
        write_rescored(codes, vectors, path)

    def grid(self, config: IndexConfig, n_labels: int) -> list[dict[str, int]]:
        """Numbers of candidates to score again."""
        return [{"rescored": n} for n in (20, 30, 40, 80, 160)]


class PqFastScan(FaissKind):
    """`index.kind = "pq-fastscan"`."""

    name = "pq-fastscan"
    settings = ("pq_dims",)

    def _write(self, vectors: NDArray[np.float32], config: IndexConfig, path: Path) -> None:
        """Train the codes on up to 65,536 vectors (n, dim), encode and write all."""
        codes = four_bit_codes(centred(vectors), config.pq_dims)
        write_rescored(codes, vectors, path)

    def grid(self, config: IndexConfig, n_labels: int) -> list[dict[str, int]]:
        """Numbers of candidates to score again."""
        return [
            {"rescored": step << doubling} for doubling in range(7) for step in (40, 48, 56, 68)
        ]


def four_bit_codes(rows: NDArray[np.float32], width: int) -> faiss.IndexPQFastScan:
    """A scan of the rows (n, dim), with a 4-bit code for each `width` dimensions or fewer."""
    dim = rows.shape[1]
    n_codes = dim // code_width(dim, width)
    codes = faiss.IndexPQFastScan(dim, n_codes, 4, faiss.METRIC_INNER_PRODUCT)
    codes.pq.cp.min_points_per_centroid = 1
    # A stride takes vectors from all over, even if labels are sorted.
    stride = -(-len(rows) // _TRAINING_VECTORS)
    codes.train(at_least(rows[::stride], CODES))
    codes.add(rows)
    return codes

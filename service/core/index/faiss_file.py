"""Reads a FAISS file that nobody vouches for: its layout is checked before FAISS sees it.

What FAISS reserves while it reads, it holds against a limit that is the whole process', not the
reading thread's; here that is a multiple of the file's size.
"""

import threading
from pathlib import Path

import faiss

from service.core.index.faiss_layout import check_layout
from service.errors import BundleMismatch

_reading = threading.Lock()
_TIMES_THE_FILE = 32
"""A table that reading `ivf-pq` computes takes up to 16 times its centres, which the file holds."""


def read_faiss(path: Path, dim: int, n_rows: int) -> faiss.Index:
    """Memory-map an index by inner product; raises BundleMismatch where it is none."""
    check_layout(path, dim, n_rows)
    try:
        with _reading:
            faiss.set_deserialization_vector_byte_limit(_TIMES_THE_FILE * path.stat().st_size)
            return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except (RuntimeError, MemoryError, OSError) as exc:
        raise BundleMismatch(f"{path} is not an index that FAISS can read: {exc}") from exc

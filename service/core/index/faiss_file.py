"""Reads a FAISS file from an untrusted bundle: it checks the layout before FAISS opens the file.

FAISS bounds the memory that it reserves while reading by a limit for the whole process, not for a
thread. So one thread reads at a time, with a limit that is a multiple of the file's size.
"""

import threading
from pathlib import Path

import faiss

from service.core.index.faiss_layout import check_layout
from service.errors import BundleMismatch

_reading = threading.Lock()
_TIMES_THE_FILE = 32
"""Reading `ivf-pq` computes a table of up to 16 times the size of its centres, which are in the
file. A choice: twice that."""


def read_faiss(path: Path, dim: int, n_rows: int) -> faiss.Index:
    """Memory-map a FAISS index of `n_rows` vectors of `dim` by inner product.

    Raises BundleMismatch if the file is anything else.
    """
    check_layout(path, dim, n_rows)
    try:
        with _reading:
            faiss.set_deserialization_vector_byte_limit(_TIMES_THE_FILE * path.stat().st_size)
            return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except (RuntimeError, MemoryError, OSError) as exc:
        raise BundleMismatch(f"{path} is not an index that FAISS can read: {exc}") from exc

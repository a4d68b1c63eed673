"""Maps the NumPy files of a bundle. It checks their type and shape and never unpickles."""

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from service.errors import BundleMismatch

_SHAPES: Final = {1: "a list", 2: "a table"}


def open_array(path: Path, dtype: DTypeLike, n_axes: int = 1) -> NDArray[Any]:
    """Map a C-contiguous array of one or two axes.

    Raises BundleMismatch if the file is no such array, or its type or axes differ.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as exc:  # on a broken header NumPy's reader can raise almost any error
        raise BundleMismatch(f"{path} is not an array that NumPy can map: {exc}") from exc
    if array.dtype != dtype or array.ndim != n_axes or not array.flags.c_contiguous:
        raise BundleMismatch(
            f"{path} holds {array.dtype} of shape {array.shape}, expected {_SHAPES[n_axes]} of "
            f"{np.dtype(dtype)} in C order"
        )
    return np.asarray(array)  # indexing an np.memmap is several times slower

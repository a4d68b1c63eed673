"""What the re-ranker knows about labels: counts of the training data, and the words of their texts.

`models.rerank.knowledge` makes the arrays, `service.core.rerank.features` reads them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.core.arrays import open_array
from service.errors import BundleMismatch

KNOWLEDGE_FILES: Final[Mapping[str, str]] = {
    "frequencies": "rerank.frequencies.npy",
    "partners": "rerank.partners.npy",
    "partner_shares": "rerank.partner_shares.npy",
    "tokens": "rerank.tokens.npy",
    "token_weights": "rerank.token_weights.npy",
    "label_weights": "rerank.label_weights.npy",
}
"""The file of each array of a `Knowledge`."""
_TABLES: Final = ("partners", "partner_shares", "tokens")
_ROWS: Final = ("partners", "tokens")


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Arrays by label row, n of them. Each table has one width, so that a read is one take.

    `frequencies` (n,) is log(1 + training points), and NaN for a label without any knowledge, which
    a fold added. `partners` (n, p) are the label rows that occur
    with a label most often, -1 where there are fewer, and `partner_shares` (n, p) is P(partner |
    label), 0 there. `tokens` (n, w) are the distinct tokens of a label's text, padded by the last
    entry of `token_weights` (vocabulary + 1,), which is 0; the others are the tokens' rarity among
    labels. `label_weights` (n,) is the sum of a label's token weights.
    """

    frequencies: NDArray[np.float32]
    partners: NDArray[np.int32]
    partner_shares: NDArray[np.float32]
    tokens: NDArray[np.int32]
    token_weights: NDArray[np.float32]
    label_weights: NDArray[np.float32]

    @property
    def n_labels(self) -> int:
        """Number of labels that the arrays know."""
        return len(self.frequencies)


def open_knowledge(folder: Path, n_labels: int) -> Knowledge:
    """Map the arrays in `folder`; raises BundleMismatch if they do not fit each other.

    It checks every row and token, so that no answer reads beyond an array.
    """
    arrays = {
        field: open_array(
            folder / name,
            np.int32 if field in _ROWS else np.float32,
            2 if field in _TABLES else 1,
        )
        for field, name in KNOWLEDGE_FILES.items()
    }
    for field, array in arrays.items():
        path = folder / KNOWLEDGE_FILES[field]
        if field != "token_weights" and len(array) != n_labels:
            raise BundleMismatch(f"{path} describes {len(array)} labels, the index has {n_labels}")
        if field not in (*_ROWS, "frequencies") and not np.isfinite(array).all():
            raise BundleMismatch(f"{path} holds NaN or an infinite value")
    if np.isinf(arrays["frequencies"]).any():
        raise BundleMismatch(f"{folder / KNOWLEDGE_FILES['frequencies']} holds infinite values")
    _check_rows(folder, "partners", arrays["partners"], -1, n_labels)
    _check_rows(folder, "tokens", arrays["tokens"], 0, len(arrays["token_weights"]))
    if arrays["partners"].shape != arrays["partner_shares"].shape:
        raise BundleMismatch(
            f"{folder}: rerank.partners.npy and rerank.partner_shares.npy differ in shape"
        )
    return Knowledge(**arrays)


def _check_rows(folder: Path, field: str, array: NDArray[np.int32], least: int, end: int) -> None:
    if array.min(initial=least) < least or array.max(initial=least) >= end:
        raise BundleMismatch(
            f"{folder / KNOWLEDGE_FILES[field]} holds {array.min()} to {array.max()}, expected "
            f"{least} to {end - 1}"
        )

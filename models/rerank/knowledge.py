"""Counts what a re-ranker knows about labels, and writes it for the service.

The same arrays serve the training of the trees: out of fold they are counted on the other folds.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from service.atomic import write_array
from service.core.rerank.knowledge import KNOWLEDGE_FILES, Knowledge

PARTNERS: Final = 16
"""Most partners that are kept of a label: the likeliest ones. A choice; 16 is one line of a cache
for rows of 4 bytes."""
MOST_TOKENS: Final = 16
"""Most distinct tokens that are kept of a label's text: the rarest ones. A choice, as above."""


def count_knowledge(
    labels: csr_array, label_tokens: Sequence[Sequence[int] | NDArray[np.integer]], n_tokens: int
) -> Knowledge:
    """What training points with `labels` (n_points, n_labels) say about the labels.

    `label_tokens` are the token ids, below `n_tokens`, of each label's text as the encoder reads
    it. Special tokens stand in every text, and so weigh nothing.
    """
    present = csr_array(labels).astype(bool).astype(np.float32)
    counts = np.asarray(present.sum(axis=0)).ravel()
    partners, shares = _partners(present, counts)
    distinct = [np.unique(np.asarray(tokens, np.int64)) for tokens in label_tokens]
    weights = _rarities(distinct, n_tokens)
    table = np.full((len(distinct), MOST_TOKENS), n_tokens, np.int32)
    for row, tokens in enumerate(distinct):
        rarest = tokens[np.argsort(-weights[tokens], kind="stable")][:MOST_TOKENS]
        table[row, : len(rarest)] = rarest
    return Knowledge(
        np.log1p(counts).astype(np.float32),
        partners,
        shares,
        table,
        weights,
        weights[table].sum(axis=1),
    )


def write_knowledge(knowledge: Knowledge, folder: Path) -> list[str]:
    """Write the arrays into `folder`, each atomically; returns the names of the files."""
    for field, name in KNOWLEDGE_FILES.items():
        write_array(folder / name, getattr(knowledge, field))
    return list(KNOWLEDGE_FILES.values())


def move_knowledge(knowledge: Knowledge, moved: NDArray[np.int64], n_labels: int) -> Knowledge:
    """The knowledge by new label rows, `n_labels` of them, for a fold.

    `moved` (n,) is the new row of each label, -1 where it is removed. Of other labels nothing is
    known: their frequency is NaN, which the features blank.
    """
    kept = np.flatnonzero(moved >= 0)
    to = moved[kept]
    padding = len(knowledge.token_weights) - 1
    frequencies = np.full(n_labels, np.nan, np.float32)
    frequencies[to] = knowledge.frequencies[kept]
    partners = np.full((n_labels, knowledge.partners.shape[1]), -1, np.int32)
    # The extra -1 is what a missing partner, of row -1, becomes.
    partners[to] = np.append(moved, -1)[knowledge.partners[kept]]
    shares = np.zeros(partners.shape, np.float32)
    shares[to] = np.where(partners[to] >= 0, knowledge.partner_shares[kept], 0)
    tokens = np.full((n_labels, knowledge.tokens.shape[1]), padding, np.int32)
    tokens[to] = knowledge.tokens[kept]
    weights = np.zeros(n_labels, np.float32)
    weights[to] = knowledge.label_weights[kept]
    return Knowledge(frequencies, partners, shares, tokens, knowledge.token_weights, weights)


def _partners(
    present: csr_array, counts: NDArray[np.floating]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The likeliest partners of each label (n_labels, PARTNERS), and P(partner | label)."""
    n_labels = present.shape[1]
    rows = np.full((n_labels, PARTNERS), -1, np.int32)
    shares = np.zeros((n_labels, PARTNERS), np.float32)
    together = csr_array(present.T @ present)
    together.sort_indices()  # equal counts: the lower row first
    for row in range(n_labels):
        cells = slice(together.indptr[row], together.indptr[row + 1])
        partners, pairs = together.indices[cells], together.data[cells]
        pairs = np.where(partners == row, 0.0, pairs)
        best = np.argsort(-pairs, kind="stable")[:PARTNERS]
        best = best[pairs[best] > 0]
        rows[row, : len(best)] = partners[best]
        shares[row, : len(best)] = pairs[best] / counts[row]
    return rows, shares


def _rarities(label_tokens: Sequence[NDArray[np.integer]], n_tokens: int) -> NDArray[np.float32]:
    """The inverse document frequency of each token among label texts (Sparck Jones, 1972).

    The last entry, 0, is that of the padding.
    """
    used = np.bincount(np.concatenate([*label_tokens, np.empty(0, np.int64)]), minlength=n_tokens)
    weights = np.log((1 + len(label_tokens)) / (1 + used))
    return np.append(weights, 0.0).astype(np.float32)

"""Losses as pure functions of logits: binary cross-entropy, whole and by importance sampling.

Both are summed over labels, as Renee does, and averaged over the queries of a batch. Slow obvious
twins of them are in tests/models/test_losses.py.
"""

from torch import Tensor
from torch.nn.functional import softplus


def full_bce(logits: Tensor, positive_rows: Tensor, positive_labels: Tensor) -> Tensor:
    """Exact loss: `logits` (n, n_labels); positives as two equally long index vectors."""
    positives = logits[positive_rows, positive_labels]
    return (softplus(logits).sum() - positives.sum()) / len(logits)


def sampled_bce(positive_logits: Tensor, negatives: list[tuple[Tensor, Tensor]], n: int) -> Tensor:
    """Unbiased estimate of `full_bce` over `n` queries: every positive, and weighted negatives.

    `negatives` are pairs (logits, weights) of equal shape; a weight is one over the expected number
    of times that this label is drawn for this query, and 0 where the draw was a positive.
    """
    loss = softplus(-positive_logits).sum()
    for logits, weights in negatives:
        loss = loss + (softplus(logits) * weights).sum()
    return loss / n

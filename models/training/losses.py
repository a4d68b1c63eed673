"""Losses as pure functions of scores: binary cross-entropy whole and sampled, and contrastive ones.

Binary cross-entropies are summed over labels, as Renee does, and averaged over the queries of a
batch; a softmax over the same sample may stand beside. A positive may carry a target below 1 (a
teacher's probability). Contrastive losses compare a query's one positive with the labels in its
batch. Slow obvious twins are in tests/models/training/test_losses.py and
test_losses_contrastive.py.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

_TINY = 1e-30
_ALMOST_ONE = 1.0 - 1e-6


@dataclass(frozen=True, slots=True)
class Cells:
    """Some cells of a (queries, labels) matrix: equally long `rows`, `labels`, and `values`."""

    rows: Tensor
    labels: Tensor
    values: Tensor

    def to(self, device: torch.device) -> "Cells":
        """The same cells on `device`."""
        return Cells(self.rows.to(device), self.labels.to(device), self.values.to(device))


def full_bce(
    queries: Tensor,
    weight: Tensor,
    targets: Cells,
    ignored: Cells,
    *,
    scale: float,
    bias: float,
    chunk: int,
) -> Tensor:
    """Exact loss over every label: logits are scale * <query, label vector> + bias.

    `queries` (n, dim), `weight` (n_labels, dim). `ignored` cells are neither positive nor negative.
    Labels are scored `chunk` at a time, gradients are formed on the way, and no (n, n_labels)
    matrix is ever held.
    """
    loss: Tensor = _FullBce.apply(queries, weight, targets, ignored, scale, bias, chunk)
    return loss


class _FullBce(torch.autograd.Function):
    """The gradient of softplus is the sigmoid, so one pass over the chunks gives both."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]  # noqa: ANN205
        ctx: torch.autograd.function.FunctionCtx,
        queries: Tensor,
        weight: Tensor,
        targets: Cells,
        ignored: Cells,
        scale: float,
        bias: float,
        chunk: int,
    ):
        n = len(queries)
        queries_gradient = torch.zeros_like(queries)
        weight_gradient = torch.empty_like(weight)
        loss = queries.new_zeros((), dtype=torch.float64)
        for start in range(0, len(weight), chunk):
            part = weight[start : start + chunk]
            logits = (queries @ part.T).mul_(scale).add_(bias)  # (n, chunk)
            wanted, left_out = (_within(cells, start, len(part)) for cells in (targets, ignored))
            loss -= (logits[wanted.rows, wanted.labels] * wanted.values).sum()
            cost = softplus(logits)
            cost[left_out.rows, left_out.labels] = 0.0
            loss += cost.sum()
            gradient = logits.sigmoid_()
            gradient[left_out.rows, left_out.labels] = 0.0
            gradient.index_put_((wanted.rows, wanted.labels), -wanted.values, accumulate=True)
            gradient.mul_(scale / n)
            queries_gradient.addmm_(gradient, part)
            torch.mm(gradient.T, queries, out=weight_gradient[start : start + chunk])
        ctx.save_for_backward(queries_gradient, weight_gradient)
        return (loss / n).to(queries.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor):  # type: ignore[no-untyped-def]  # noqa: ANN205
        queries_gradient, weight_gradient = ctx.saved_tensors  # type: ignore[attr-defined]
        upstream = gradients[0]
        return (
            queries_gradient * upstream,
            weight_gradient * upstream,
            *(None,) * 5,
        )


def _within(cells: Cells, start: int, size: int) -> Cells:
    """The cells of one chunk of labels, their labels counted from its start."""
    inside = (cells.labels >= start) & (cells.labels < start + size)
    return Cells(cells.rows[inside], cells.labels[inside] - start, cells.values[inside])


def sampled_bce(
    positive_logits: Tensor,
    targets: Tensor,
    negatives: list[tuple[Tensor, Tensor]],
    n: int,
) -> Tensor:
    """Unbiased estimate of `full_bce` over `n` queries: every positive, and weighted negatives.

    `negatives` are pairs (logits, weights) of equal shape; a weight is one over the expected number
    of times that this label is drawn for this query, and 0 where the draw was a positive.
    """
    loss = (softplus(positive_logits) - targets * positive_logits).sum()
    for logits, weights in negatives:
        loss = loss + (softplus(logits) * weights).sum()
    return loss / n


def log_partition(
    negatives: list[tuple[Tensor, Tensor]], positive_logits: Tensor, targets: Tensor, rows: Tensor
) -> Tensor:
    """Log of the estimated sum of exp(logit) over what each query's positives compete with, (n,).

    That is its `negatives`, as in `sampled_bce`, and of a positive what its target leaves to 1.
    `rows` are the positives' queries.
    """
    weighed = [logits + weights.clamp(min=_TINY).log() for logits, weights in negatives]
    # A rank that holds none of the batch's negatives has no column at all.
    others = torch.cat(weighed, dim=1).logsumexp(dim=1).clamp(min=math.log(_TINY))
    logits = positive_logits + (1 - targets).clamp(min=_TINY).log()
    peak = others.detach().scatter_reduce(0, rows, logits.detach(), "amax")
    total = (others - peak).exp().index_add(0, rows, (logits - peak[rows]).exp())
    return peak + total.log()


def sampled_softmax(positive_logits: Tensor, targets: Tensor, partition: Tensor, n: int) -> Tensor:
    """Cross-entropy of each positive among its query's negatives, averaged over `n` queries.

    Decoupled: a query's other positives do not compete (Gupta et al., 2024). `partition` is the
    `log_partition` of each positive's query.
    """
    return (softplus(partition - positive_logits) * targets).sum() / n


def contrastive_hinge(
    scores: Tensor,
    positives: Tensor,
    allowed: Tensor,
    *,
    margin: float,
    hardest: int,
    temperature: float,
) -> Tensor:
    """Each query's positive must beat its `hardest` negatives by the margin (NGAME).

    `scores` (n, m) of n queries and m labels; `positives` (n,) says which column is a query's own,
    `allowed` (n, m) which are negatives of it. Hinges are averaged by a softmax over the scores of
    the violators (the others count as score 0); these weights take no gradient.
    """
    own = scores.gather(1, positives.unsqueeze(1))  # (n, 1)
    wrong = scores.masked_fill(~allowed, -torch.inf)
    wrong, columns = wrong.topk(min(hardest, scores.shape[1]), dim=1)  # (n, k)
    present = allowed.gather(1, columns)
    # Absent ones become finite first: the gradient of inf times zero is no number.
    hinges = (wrong.masked_fill(~present, 0.0) - own + margin).clamp(min=0.0) * present
    with torch.no_grad():
        heat = torch.where(hinges > 0, wrong, 0.0) / temperature
        weights = heat.masked_fill(~present, -torch.inf).softmax(dim=1).nan_to_num()
    return (hinges * weights).sum() / len(scores)


def info_nce(scores: Tensor, positives: Tensor, allowed: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy of a query's positive among the negatives in its batch; shapes as above."""
    among = allowed.scatter(1, positives.unsqueeze(1), True)
    return cross_entropy((scores / temperature).masked_fill(~among, -torch.inf), positives)


def path_bce(
    logits: Tensor, paths: Tensor, targets: Tensor, counted: Tensor, path_weight: float
) -> Tensor:
    """BCE of probabilities sigmoid(logit) * path score, and of positives' path scores (ELIAS).

    All are (n, K): the labels of each query's shortlist; those not `counted` are left out. Summed
    over labels, averaged over queries; the second part weighs `path_weight`.
    """
    found = paths.clamp(min=_TINY).log()
    probabilities = (logits.sigmoid() * paths).clamp(max=_ALMOST_ONE)
    wrong = -torch.log1p(-probabilities)
    right = softplus(-logits) - found
    whole = targets * right + (1.0 - targets) * wrong - path_weight * targets * found
    return torch.where(counted, whole, 0.0).sum() / len(logits)

"""Losses as pure functions of scores: full and sampled binary cross-entropy, and contrastive ones.

Binary cross-entropies are sums over labels, as in Renee (Jain et al., MLSys 2023), and means over
the queries of a batch. A softmax over the same sample can be added. A positive's target can be
below 1, with a teacher. Contrastive losses compare a query's one positive with the other labels of
its batch. tests/models/training/test_losses.py and test_losses_contrastive.py compare each loss
with a slow, obvious version.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

_TINY = 1e-30  # a logarithm's argument at least: finite in fp32


@dataclass(frozen=True, slots=True)
class Cells:
    """Some cells of a (queries, labels) matrix: `rows`, `labels` and `values`, each (n_cells,)."""

    rows: Tensor
    labels: Tensor
    values: Tensor

    def to(self, device: torch.device) -> "Cells":
        """These cells on `device`."""
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
    """Exact loss over every label, a scalar; logits are scale * <query, label vector> + bias.

    `queries` (n, dim), `weight` (n_labels, dim). `ignored` cells are neither positive nor negative.
    It scores `chunk` labels at a time and computes their gradients at once, so it never holds an
    (n, n_labels) matrix.
    """
    loss: Tensor = _FullBce.apply(queries, weight, targets, ignored, scale, bias, chunk)
    return loss


class _FullBce(torch.autograd.Function):
    """Loss and gradients in one pass: softplus has the sigmoid as its gradient."""

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
            positives = _within(targets, start, len(part))
            exclusions = _within(ignored, start, len(part))
            loss -= (logits[positives.rows, positives.labels] * positives.values).sum()
            cost = softplus(logits)
            cost[exclusions.rows, exclusions.labels] = 0.0
            loss += cost.sum()
            gradient = logits.sigmoid_()
            gradient[exclusions.rows, exclusions.labels] = 0.0
            at = (positives.rows, positives.labels)
            gradient.index_put_(at, -positives.values, accumulate=True)
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
    """The cells of one chunk of labels; their labels count from its start."""
    inside = (cells.labels >= start) & (cells.labels < start + size)
    return Cells(cells.rows[inside], cells.labels[inside] - start, cells.values[inside])


def sampled_bce(
    positive_logits: Tensor,
    targets: Tensor,
    negatives: list[tuple[Tensor, Tensor]],
    n: int,
) -> Tensor:
    """Unbiased estimate of `full_bce` over `n` queries, from all positives and weighted negatives.

    `positive_logits` and `targets` are (n_positives,). `negatives` are pairs (logits, weights) of
    equal shape. A weight is one over the label's expected number of draws for the query, and 0 if
    the label is no negative.
    """
    loss = (softplus(positive_logits) - targets * positive_logits).sum()
    for logits, weights in negatives:
        loss = loss + (softplus(logits) * weights).sum()
    return loss / n


def log_partition(
    negatives: list[tuple[Tensor, Tensor]], positive_logits: Tensor, targets: Tensor, rows: Tensor
) -> Tensor:
    """Log of the estimated sum of exp(logit) over the rivals of each query's positives, (n,).

    The rivals are the query's `negatives`, as in `sampled_bce`, and each positive with the weight
    1 - target. `rows` (n_positives,) are the positives' queries.
    """
    # A rank may hold none of the batch's negatives; the last column stands for no rival at all.
    nobody = positive_logits.new_full((len(negatives[0][0]), 1), math.log(_TINY))
    rivals = [logits.masked_fill(weights <= 0, -torch.inf) for logits, weights in negatives]
    logits = torch.cat([*rivals, nobody], dim=1)
    weights = torch.cat([*(weights for _, weights in negatives), torch.ones_like(nobody)], dim=1)
    own = positive_logits + (1 - targets).clamp(min=_TINY).log()
    peak = logits.detach().amax(dim=1).scatter_reduce(0, rows, own.detach(), "amax")
    total = ((logits - peak.unsqueeze(1)).exp() * weights).sum(dim=1)
    return peak + total.index_add(0, rows, (own - peak[rows]).exp()).log()


def sampled_softmax(positive_logits: Tensor, targets: Tensor, partition: Tensor, n: int) -> Tensor:
    """Cross-entropy of each positive among its query's negatives, averaged over `n` queries.

    It is the decoupled softmax of Gupta et al. (ICLR 2024): a query's other positives do not
    compete. `partition` (n_positives,) is the `log_partition` of each positive's query.
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
    """Hinge loss: each query's positive must beat its `hardest` negatives by the margin.

    `scores` (n, m) are of n queries and m labels. `positives` (n,) is the column of each query's
    positive, and `allowed` (n, m) says which columns are its negatives. A query's hinges are
    averaged with softmax weights over the scores of the negatives that violate the margin; the
    others count as score 0. These weights have no gradient. From NGAME (Dahiya et al., WSDM 2023).
    """
    own = scores.gather(1, positives.unsqueeze(1))  # (n, 1)
    wrong = scores.masked_fill(~allowed, -torch.inf)
    wrong, columns = wrong.topk(min(hardest, scores.shape[1]), dim=1)  # (n, k)
    present = allowed.gather(1, columns)
    # Set absent scores to 0 first, because the gradient of infinity times zero is no number.
    hinges = (wrong.masked_fill(~present, 0.0) - own + margin).clamp(min=0.0) * present
    with torch.no_grad():
        heat = torch.where(hinges > 0, wrong, 0.0) / temperature
        weights = heat.masked_fill(~present, -torch.inf).softmax(dim=1).nan_to_num()
    return (hinges * weights).sum() / len(scores)


def info_nce(scores: Tensor, positives: Tensor, allowed: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy of each positive among its query's negatives; shapes as in the hinge.

    InfoNCE is from van den Oord et al. (2018).
    """
    rivals = allowed.scatter(1, positives.unsqueeze(1), True)
    return cross_entropy((scores / temperature).masked_fill(~rivals, -torch.inf), positives)


def path_bce(
    logits: Tensor, paths: Tensor, targets: Tensor, counted: Tensor, path_weight: float
) -> Tensor:
    """BCE of the probabilities sigmoid(logit) * path score, plus a loss of the path scores.

    All tensors are (n, K), over each query's shortlist; a label is left out if `counted` is false.
    The second part is -log(path score) of the positives, times `path_weight`. Both are sums over
    labels and means over queries. From ELIAS (arXiv 2210.08410).
    """
    log_paths = paths.clamp(min=_TINY).log()
    # -log(1 - sigmoid(logit) * path), in a form whose gradient also moves what is surely wrong.
    rest = 1.0 - paths
    log_rest = torch.where(rest > 0, rest, 1.0).log()
    wrong = softplus(logits) - torch.where(rest > 0, softplus(logits + log_rest), 0.0)
    right = softplus(-logits) - log_paths
    whole = targets * right + (1.0 - targets) * wrong - path_weight * targets * log_paths
    return torch.where(counted, whole, 0.0).sum() / len(logits)

"""Adagrad with one number of state a row: it reads, updates and writes each row once.

    g_r   gradient of row r, (dim,)
    s_r   squares[r]: sum over steps of the mean of the squares of g_r
    w_r   <- w_r - rate * g_r / (sqrt(s_r) + epsilon)

Adagrad is from Duchi et al. (JMLR 2011). One sum a row in place of one an entry is the row-wise
Adagrad of Mudigere et al. (ISCA 2022), made for the tables of recommenders. A row counts only the
steps that reached it, so a rare row's first step is as long as a frequent one's was
(docs/decisions/0030).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_EPSILON = 1e-10
"""torch.optim.Adagrad's value."""


class RowAdagrad(Optimizer):
    """Row-wise Adagrad for matrices (rows, dim), whose gradients may be row-sparse or dense.

    The state of each is `squares` (rows,).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float) -> None:
        super().__init__(parameters, {"lr": rate})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update the rows that have a gradient; a `closure` is not called."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["squares"] = parameter.new_zeros(len(parameter))
                _update(parameter, parameter.grad, state["squares"], group["lr"])


def _update(weight: Tensor, gradient: Tensor, squares: Tensor, rate: float) -> None:
    if not gradient.is_sparse:
        squares.add_(_mean_square(gradient))
        weight.addcmul_(gradient, _factors(squares, rate))
        return
    gradient = gradient.coalesce()
    rows, values = gradient.indices()[0], gradient.values()
    sums = squares.index_select(0, rows).add_(_mean_square(values))
    squares.index_copy_(0, rows, sums)
    weight.index_add_(0, rows, values.mul_(_factors(sums, rate)))


def _mean_square(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1).square_().div_(rows.shape[1])


def _factors(sums: Tensor, rate: float) -> Tensor:
    return sums.sqrt().add_(_EPSILON).reciprocal_().mul_(-rate).unsqueeze(1)

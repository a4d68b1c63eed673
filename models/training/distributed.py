"""One training job over several processes (`torchrun`): the encoder by data, the labels by rows.

Every rank draws the same random numbers and sees the same batch. It encodes its share of the texts,
all ranks gather all embeddings, and each scores the labels whose rows it holds. Losses and encoder
gradients are summed, so the job computes what one process would
(tests/models/training/test_distributed.py). With one process every function here hands back what it
got.
"""

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import TypeVar

import torch
import torch.distributed as dist

# Its functions' default arguments keep whatever group exists at its import. Imported late (an
# optimizer does so), they would hold ours past `leave`, and a gloo thread that still wants the
# interpreter when that is gone aborts the process.
import torch.distributed.nn.functional
from torch import Tensor, nn

T = TypeVar("T")
_PATIENCE = timedelta(hours=12)
"""How long a rank waits for the others: the leading one may encode a whole data set meanwhile."""


@dataclass(frozen=True, slots=True)
class World:
    """This process among its peers."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> "World":
        """The world that torchrun's environment variables describe, or a world of one.

        Ranks that do not lead log nothing but errors. `leave` when all is done.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        # Label rows may lie on the host while the encoder is on a GPU: each side has its backend.
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, timeout=_PATIENCE)
        world = cls(dist.get_rank(), size)
        if not world.leads:
            logging.getLogger("models").setLevel(logging.ERROR)
        return world

    def leave(self) -> None:
        """Close what `join` opened."""
        if self.size > 1:
            dist.destroy_process_group()

    @property
    def leads(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """This rank's contiguous part of n rows."""
        bounds = self._bounds(n)
        return slice(bounds[self.rank], bounds[self.rank + 1])

    def wait(self) -> None:
        """Until every rank is here."""
        self.sum(torch.zeros(1))

    def leader_first(self, action: Callable[[], T]) -> T:
        """What `action` gives; the leading rank goes first, the others find what it left."""
        if not self.leads:
            self.wait()
        result = action()
        if self.leads:
            self.wait()
        return result

    def gather_rows(self, part: Tensor, n: int) -> Tensor:
        """All n rows from every rank's share of them; gradients flow back to the shares."""
        if self.size == 1:
            return part
        gathered: Tensor = _GatherRows.apply(part, self, n)
        return gathered

    def gather(self, part: Tensor, n: int) -> Tensor:
        """All n rows, without gradients."""
        if self.size == 1:
            return part
        return torch.cat(self._gather(part, [b - a for a, b in pairwise(self._bounds(n))]))

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def agree(self, value: float) -> float:
        """The leading rank's value: what all decide by, so that all decide the same."""
        return float(self.sum(torch.tensor(value if self.leads else 0.0, dtype=torch.float64)))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over ranks."""
        if self.size == 1:
            return
        for parameter in parameters:
            # Every rank has run the same graph, so one without a gradient has none anywhere.
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                parameter.grad = self._sum_sparse(parameter.grad)
            else:
                dist.all_reduce(parameter.grad)

    def _sum_sparse(self, gradient: Tensor) -> Tensor:
        """Row-sparse gradients of all ranks, laid end to end: no backend reduces them."""
        gradient = gradient.coalesce()
        rows, values = gradient.indices()[0], gradient.values()
        counts = self.gather(torch.tensor([len(rows)]), self.size).tolist()
        every_row, every_value = self._gather(rows, counts), self._gather(values, counts)
        summed = torch.sparse_coo_tensor(
            torch.cat(every_row).unsqueeze(0),
            torch.cat(every_value),
            gradient.shape,
            check_invariants=False,
        )
        return summed.coalesce()

    def _gather(self, part: Tensor, counts: list[int]) -> list[Tensor]:
        """Every rank's rows, `counts` of them; padded on the way, for all must send alike."""
        padded = part.new_zeros((max(counts), *part.shape[1:]))
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return [rows[:count] for rows, count in zip(parts, counts, strict=True)]

    def _bounds(self, n: int) -> list[int]:
        return [n * rank // self.size for rank in range(self.size + 1)]


class _GatherRows(torch.autograd.Function):
    """all_gather whose backward sums what every rank's labels want of each row."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, part: Tensor, world: World, n: int):  # type: ignore[no-untyped-def]  # noqa: ANN205
        ctx.world, ctx.n = world, n  # type: ignore[attr-defined]
        return world.gather(part.detach(), n)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor):  # type: ignore[no-untyped-def]  # noqa: ANN205
        world: World = ctx.world  # type: ignore[attr-defined]
        total = world.sum(gradients[0])
        return total[world.share(ctx.n)], None, None  # type: ignore[attr-defined]

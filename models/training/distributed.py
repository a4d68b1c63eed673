"""One training job in several processes (`torchrun`): texts and label rows are split over ranks.

Every rank draws the same random numbers and sees the same batch. It encodes its share of the texts,
gathers the embeddings of all ranks, and scores the labels whose rows it holds. The ranks sum losses
and encoder gradients, so the job computes the same as one process
(tests/models/training/test_distributed.py). With one process, the methods that
combine ranks return their argument.
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

# Import early: the functions' default arguments keep the process group that exists at the import.
# An optimiser would import it later, and then keep our group beyond `leave`. A gloo thread of that
# group aborts the process if it needs the interpreter after its end.
import torch.distributed.nn.functional
from torch import Tensor, nn

T = TypeVar("T")
_PATIENCE = timedelta(hours=12)
"""How long a rank waits for the others. A choice: the first rank may encode a whole data set."""


@dataclass(frozen=True, slots=True)
class World:
    """This process among those of torchrun: its `rank`, counted from 0, and their number `size`."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> "World":
        """The world that torchrun's environment variables describe; without them, a world of one.

        Ranks other than the first log errors only. Call `leave` at the end.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        # Label rows may be on the host while the encoder is on a GPU, so each device has a backend.
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
        """Close the process group that `join` opened."""
        if self.size > 1:
            dist.destroy_process_group()

    @property
    def leads(self) -> bool:
        """Whether this is the first rank, which writes files and logs."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """This rank's part of n rows; the ranks' parts follow one another."""
        bounds = self._bounds(n)
        return slice(bounds[self.rank], bounds[self.rank + 1])

    def wait(self) -> None:
        """Wait until every rank has called this."""
        self.sum(torch.zeros(1))

    def leader_first(self, action: Callable[[], T]) -> T:
        """The result of `action`. The other ranks run it after the first, and find its files."""
        if not self.leads:
            self.wait()
        result = action()
        if self.leads:
            self.wait()
        return result

    def gather_rows(self, part: Tensor, n: int) -> Tensor:
        """All n rows, from the `part` of each rank; gradients flow back to the parts."""
        if self.size == 1:
            return part
        gathered: Tensor = _GatherRows.apply(part, self, n)
        return gathered

    def gather(self, part: Tensor, n: int) -> Tensor:
        """All n rows, from the `part` of each rank, without gradients."""
        if self.size == 1:
            return part
        return torch.cat(self._gather(part, [b - a for a, b in pairwise(self._bounds(n))]))

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over ranks."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def agree(self, value: float) -> float:
        """The first rank's value, so that all ranks decide alike."""
        return float(self.sum(torch.tensor(value if self.leads else 0.0, dtype=torch.float64)))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over ranks."""
        if self.size == 1:
            return
        for parameter in parameters:
            # Every rank ran the same graph, so a parameter without a gradient has none on any rank.
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                parameter.grad = self._sum_sparse(parameter.grad)
            else:
                dist.all_reduce(parameter.grad)

    def _sum_sparse(self, gradient: Tensor) -> Tensor:
        """The sum of row-sparse gradients: all parts of all ranks, as no backend reduces them."""
        gradient = gradient.coalesce()
        rows, values = gradient.indices()[0], gradient.values()
        counts = self.gather(torch.tensor([len(rows)]), self.size).tolist()
        every_row, every_value = self._gather(rows, counts), self._gather(values, counts)
        return torch.sparse_coo_tensor(
            torch.cat(every_row).unsqueeze(0),
            torch.cat(every_value),
            gradient.shape,
            check_invariants=False,
        )

    def _gather(self, part: Tensor, counts: list[int]) -> list[Tensor]:
        """Every rank's rows, `counts` of them; sent padded, because all must send one shape."""
        padded = part.new_zeros((max(counts), *part.shape[1:]))
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return [rows[:count] for rows, count in zip(parts, counts, strict=True)]

    def _bounds(self, n: int) -> list[int]:
        return [n * rank // self.size for rank in range(self.size + 1)]


class _GatherRows(torch.autograd.Function):
    """all_gather; its backward sums each row's gradient over the ranks."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, part: Tensor, world: World, n: int):  # type: ignore[no-untyped-def]  # noqa: ANN205
        ctx.world, ctx.n = world, n  # type: ignore[attr-defined]
        return world.gather(part.detach(), n)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor):  # type: ignore[no-untyped-def]  # noqa: ANN205
        world: World = ctx.world  # type: ignore[attr-defined]
        total = world.sum(gradients[0])
        return total[world.share(ctx.n)], None, None  # type: ignore[attr-defined]

"""The optimisers of a run, one for each parameter group, and their schedule.

Tables of the bag and label vectors get row-wise Adagrad, which moves only the rows that a batch
read. A method's own groups, such as the clusters and edges of ELIAS, get Adam. The other groups get
AdamW.
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from models.config import TrainConfig
from models.training.row_adagrad import RowAdagrad

LABELS = "labels"
_EPSILON = 1e-6
"""BERT's value for AdamW (Devlin et al., 2019), whose layers this group may hold."""


class Optimizers:
    """Optimisers by group name, which step together.

    `rates` override learning rates of the configuration, and name those of the method's own groups.
    """

    def __init__(
        self,
        groups: dict[str, list[nn.Parameter]],
        config: TrainConfig,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        self.groups = groups
        self.rates = {
            "tables": config.encoder_lr,
            "projection": config.projection_lr,
            "transformer": config.transformer_lr,
            LABELS: config.label_lr,
        }
        own = set(rates or {}) - set(self.rates)  # the method's own groups do not decay
        self.rates |= rates or {}
        self.named: dict[str, Optimizer] = {}
        for name, parameters in groups.items():
            rate = self.rates[name]
            if name in ("tables", LABELS):
                self.named[name] = RowAdagrad(parameters, rate)
            elif name in own:
                self.named[name] = Adam(parameters, lr=rate)
            else:
                self.named[name] = AdamW(
                    _decayed(parameters, config.weight_decay), lr=rate, eps=_EPSILON
                )

    @property
    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of all groups but the label vectors."""
        for name, parameters in self.groups.items():
            if name != LABELS:
                yield from parameters

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for optimizer in self.named.values():
            optimizer.zero_grad(set_to_none=True)

    def step(self, rate: float, scaler: torch.amp.GradScaler) -> None:
        """Update every parameter at `rate` (0 to 1) times its group's learning rate."""
        for name, optimizer in self.named.items():
            for group in optimizer.param_groups:
                group["lr"] = self.rates[name] * rate
            scaler.step(optimizer)
        scaler.update()


def scheduled_share(config: TrainConfig, step: int, total: int) -> float:
    """Share (0 to 1) of the learning rate at `step`, which counts from 0 to `total` - 1.

    It rises over `train.warmup_steps`, and falls along a line or a cosine that is 0 at `total`.
    """
    warm_up = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "cosine":
        return warm_up * 0.5 * (1.0 + math.cos(math.pi * step / total))
    return warm_up * (1.0 - step / total)


def _decayed(parameters: list[nn.Parameter], decay: float) -> list[dict[str, object]]:
    """Two parameter groups: matrices decay; vectors, which are biases and norms, do not."""
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]

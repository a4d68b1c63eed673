"""What the loop, the export and a teacher's pupil know of a method: the seam between them.

A method is an nn.Module that holds the encoder, the label vectors and whatever else it learns. It
trains in phases, one after the other, each with optimisers and a schedule of its own; the last one
is what serves. Who makes which method is `models.trained`'s business.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.config import TrainConfig
from models.encoders.build import TextEncoder
from models.rng import Rng
from models.training.distributed import World
from models.training.label_graph import LabelGraph
from models.training.training_rows import TrainingRows


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the training job; `name` is empty where a method has only one.

    `rates` are learning rates of parameter groups, in place of what `train` says of them.
    """

    name: str
    epochs: int
    rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ranked:
    """The best labels of n queries, best first: `labels` (n, k) and their `probabilities`."""

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Servable:
    """What export and index need: the encoder, and the vectors (n_labels, dim) of the labels.

    An inner product plus `method.logit_bias` is a logit. `graph` is the learned way to the labels,
    where the method has one.
    """

    encoder: TextEncoder
    label_vectors: NDArray[np.float32]
    graph: LabelGraph | None = None


class Method(Protocol):
    """A model that can be trained, saved, opened again and asked."""

    encoder: TextEncoder
    world: World
    n_labels: int
    shard: slice
    device: torch.device
    sparse_labels: bool
    """Whether a step moves only the label vectors that it has read."""

    def place(self, device: torch.device, autocast: torch.dtype | None) -> None:
        """Move the model to `device`; the encoder computes in `autocast`, None for fp32."""
        ...

    def phases(self, config: TrainConfig) -> Sequence[Phase]:
        """What training consists of, at least one phase."""
        ...

    def begin(self, phase: int, rows: TrainingRows, rng: Rng) -> None:
        """Make the model ready for a phase; what the one before has learnt is still there."""
        ...

    def wants_refresh(self, epoch: int) -> bool:
        """Whether `refresh` is due before this epoch of the phase, counted from 0."""
        ...

    def refresh(self, rows: TrainingRows) -> None:
        """Work out anew what steps take from the model as a whole."""
        ...

    def train_step(self, rows: TrainingRows, picked: NDArray[np.int64], rng: Rng) -> Tensor:
        """This rank's part of the loss of the picked rows, ready for `backward`."""
        ...

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """What is trained, by optimiser group."""
        ...

    def best(self, queries: NDArray[np.float32], k: int) -> Ranked:
        """The labels that would be served for embeddings (n, dim)."""
        ...

    def servable(self) -> Servable:
        """The trained parts as serving needs them."""
        ...

    def transient(self) -> dict[str, Tensor]:
        """What a checkpoint keeps beside the weights."""
        ...

    def restore(self, transient: Mapping[str, Tensor]) -> None:
        """Take back what `transient` gave."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of nn.Module."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """As of nn.Module."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """As of nn.Module."""
        ...

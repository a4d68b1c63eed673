"""What a method is to the training loop, export, index and distillation.

A method is an nn.Module. It holds the encoder, the label vectors and everything else that it
learns. It trains in phases, one after the other. Each phase has its own optimisers and schedule,
and the last phase makes the final model. `models.trained` builds the method of a configuration.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.config import TrainConfig
from models.encoders.build import TextEncoder, parameter_groups
from models.rng import Rng
from models.training.distributed import World
from models.training.label_graph import LabelGraph
from models.training.training_rows import TrainingRows


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the training job; `name` is empty if the method has only one.

    `rates` are learning rates by parameter group; they override those of `train`.
    """

    name: str
    epochs: int
    rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ranking:
    """The best labels of n queries, best first: `labels` and `probabilities`, both (n, k)."""

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Servable:
    """The trained parts for export and index: the encoder and `label_vectors` (n_labels, dim).

    The inner product of an embedding and a label vector, plus `method.logit_bias`, is the label's
    logit. `graph` holds learned clusters and edges, None if the method has none.
    """

    encoder: TextEncoder
    label_vectors: NDArray[np.float32]
    graph: LabelGraph | None = None


class Trainable(nn.Module, ABC):
    """A model that the loop trains, and that saves and restores its state.

    `shard` are the label rows of this rank, of `n_labels` in all. The encoder computes in type
    `autocast`, None for fp32.
    """

    encoder: TextEncoder

    def __init__(self, encoder: TextEncoder, n_labels: int, world: World | None = None) -> None:
        super().__init__()
        self.encoder, self.n_labels = encoder, n_labels
        self.world = world or World()
        self.shard = self.world.share(n_labels)
        self.device = torch.device("cpu")
        self.autocast: torch.dtype | None = None

    def place(self, device: torch.device, autocast: torch.dtype | None) -> None:
        """Move the model to `device`; the encoder computes in type `autocast`, None for fp32."""
        self.device, self.autocast = device, autocast
        self.to(device)

    @abstractmethod
    def phases(self, config: TrainConfig) -> Sequence[Phase]:
        """The phases of training in their order, at least one."""

    def begin(self, phase: int, rows: TrainingRows, rng: Rng) -> None:
        """Prepare the model for a phase; it still holds the weights of the phase before."""

    def wants_refresh(self, epoch: int) -> bool:
        """Whether `refresh` is due before this epoch of the phase, counted from 0."""
        return False

    def refresh(self, rows: TrainingRows) -> None:
        """Compute anew what steps derive from the whole model, such as hard negatives."""

    @abstractmethod
    def train_step(self, rows: TrainingRows, batch: NDArray[np.int64], rng: Rng) -> Tensor:
        """This rank's part of the loss of the rows `batch` (n,), ready for `backward`."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trainable parameters, by optimiser group: those of the encoder."""
        return parameter_groups(self.encoder)

    @abstractmethod
    def best(self, queries: NDArray[np.float32], k: int) -> Ranking:
        """The k best labels of embeddings `queries` (n, dim)."""

    def transient(self) -> dict[str, Tensor]:
        """The state beside the weights that a checkpoint needs."""
        return {}

    def restore(self, transient: Mapping[str, Tensor]) -> None:
        """Set the state that `transient` returned."""


class Method(Trainable):
    """A model that is served; `best` ranks as the served model does."""

    @abstractmethod
    def servable(self) -> Servable:
        """The trained parts for export and index."""

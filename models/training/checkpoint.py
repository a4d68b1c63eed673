"""Checkpoints: weights, optimiser moments, negatives, random states and the place in training.

A checkpoint is one safetensors file, written atomically, without pickles. A resumed run computes
the same numbers as an uninterrupted one, on a CPU with the same number of threads.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.errors import RunError
from models.rng import Rng
from models.training.optimizers import LABELS, Optimizers
from service.atomic import write_atomic

SHARDED = "labels.weight"
"""The one weight whose rows are split over ranks; files hold all rows."""

_BROKEN = (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError)


class HasWeights(Protocol):
    """An object with weights to save, such as an nn.Module."""

    def state_dict(self) -> dict[str, Any]:
        """The weights: tensors by name."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Set the weights."""
        ...


@dataclass(slots=True)
class Progress:
    """How far training is. Epochs and steps count from 0, and name the next one to do.

    `first_epoch` and `first_step` are the phase's first. `best_p_at_1` and `best_ndcg_at_5` are in
    percent, `seconds` are those of the epochs so far. `best_epoch` is -1 before the first epoch.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best_p_at_1: float = -1.0
    best_ndcg_at_5: float = -1.0
    best_epoch: int = -1
    loss_sum: float = 0.0
    seconds: float = 0.0
    phase: int = 0
    first_epoch: int = 0
    first_step: int = 0

    def outcome(self) -> dict[str, float]:
        """What measured.json says of a finished training; epochs count from 1 there."""
        return {
            "best_epoch": self.best_epoch + 1,
            "epochs": self.epoch,
            "validation_p_at_1": self.best_p_at_1,
            "seconds": round(self.seconds, 1),
        }


@dataclass(frozen=True, slots=True)
class State:
    """The objects that training changes in place.

    `shard` are the label rows of this rank. `whole` gathers all label rows from those of each rank;
    every rank must call it.
    """

    model: HasWeights
    optimizers: Optimizers
    rng: Rng
    shard: slice = field(default_factory=lambda: slice(None))
    whole: Callable[[Tensor], Tensor] = lambda rows: rows


@dataclass(frozen=True, slots=True)
class Place:
    """The place in training: `progress`, the epoch's row `order` (n,), and `Method.transient()`."""

    progress: Progress
    order: NDArray[np.int64]
    transient: Mapping[str, Tensor] = field(default_factory=dict)


def save_checkpoint(path: Path, state: State, place: Place, *, write: bool = True) -> None:
    """Write a checkpoint of `state` at `place`.

    Every rank must call this, because it gathers label rows; a rank writes if `write` is true.
    Raises RunError if the file cannot be written.
    """
    numpy_state, torch_state = state.rng.state()
    weights = weights_of(state.model, state.whole)
    tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
    scalars: dict[str, float] = {}
    for kind, optimizer in state.optimizers.named.items():
        for number, moments in optimizer.state_dict()["state"].items():
            for name, value in moments.items():
                key = f"{kind}.{number}.{name}"
                if isinstance(value, Tensor) and value.ndim > 0:
                    tensors[f"optimizer.{key}"] = state.whole(value) if kind == LABELS else value
                else:
                    scalars[key] = float(value)
    tensors |= {"rng.torch": torch_state, "order": torch.from_numpy(place.order)}
    tensors |= {f"transient.{name}": tensor for name, tensor in place.transient.items()}
    metadata = {
        "progress": json.dumps(asdict(place.progress)),
        "rng.numpy": numpy_state,
        "optimizers": json.dumps(scalars),
    }
    if write:
        write_tensors(path, tensors, metadata)


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write one safetensors file, atomically. Raises RunError if it cannot be written."""
    try:
        write_atomic(path, lambda temporary: save_file(tensors, str(temporary), metadata))
    except (SafetensorError, OSError) as exc:
        # For a full disk the library raises its own error, which quotes the system's.
        raise RunError(
            f"{path} could not be written ({exc}): an older file there is whole, so make room "
            "and run the same command again"
        ) from exc


def weights_of(model: HasWeights, whole: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The model's weights by name, with the label rows of all ranks."""
    return {
        name: whole(tensor) if name == SHARDED else tensor
        for name, tensor in model.state_dict().items()
    }


def load_checkpoint(path: Path, state: State) -> Place:
    """Restore `state` in place, and return the place in training.

    Raises RunError if the file is damaged or belongs to another model.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        weights = _under("model.", tensors)
        if SHARDED in weights:
            weights[SHARDED] = weights[SHARDED][state.shard].clone()
        state.model.load_state_dict(weights)
        scalars = json.loads(metadata["optimizers"])
        _restore_optimizers(state.optimizers, tensors, scalars, state.shard)
        state.rng.restore(metadata["rng.numpy"], tensors["rng.torch"])
        progress = Progress(**json.loads(metadata["progress"]))
        return Place(progress, tensors["order"].numpy(), _under("transient.", tensors))
    except _BROKEN as exc:
        raise RunError(f"{path} cannot be resumed from ({exc}): delete it to start anew") from exc


def phase_of(path: Path) -> int:
    """The phase of a checkpoint, counted from 0. Raises RunError if the file is damaged."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return Progress(**json.loads(file.metadata()["progress"])).phase
    except _BROKEN as exc:
        raise RunError(f"{path} cannot be resumed from ({exc}): delete it to start anew") from exc


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _restore_optimizers(
    optimizers: Optimizers, tensors: dict[str, Tensor], scalars: dict[str, float], shard: slice
) -> None:
    for kind, optimizer in optimizers.named.items():
        state: dict[int, dict[str, object]] = {}
        for name, tensor in _under(f"optimizer.{kind}.", tensors).items():
            number, _, part = name.partition(".")
            value = tensor[shard].clone() if kind == LABELS else tensor
            state.setdefault(int(number), {})[part] = value
        for name, scalar in scalars.items():
            owner, number, part = name.split(".")
            if owner == kind:
                state.setdefault(int(number), {})[part] = torch.tensor(scalar)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

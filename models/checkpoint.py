"""Saving and restoring a training run: weights, optimiser moments, negatives, randomness, place.

One safetensors file, written atomically; nothing in it is a pickle. A run restored from it goes on
with the very numbers it would have had.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.atomic import write_atomic
from models.errors import RunError
from models.negatives import HardNegatives
from models.rng import Rng


@dataclass(slots=True)
class Progress:
    """Where training stands. Epochs and steps count from 0; `step_in_epoch` is the next to do."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best_p_at_1: float = -1.0
    best_epoch: int = -1
    loss_sum: float = 0.0
    seconds: float = 0.0


@dataclass(slots=True)
class Restored:
    """What a checkpoint holds beside the parts that it was restored into."""

    progress: Progress
    order: NDArray[np.int64]
    hard: HardNegatives | None


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rng: Rng,
    progress: Progress,
    order: NDArray[np.int64],
    hard: HardNegatives | None,
) -> None:
    """Write everything needed to go on after `progress`. `order` is this epoch's row order."""
    numpy_state, torch_state = rng.state()
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    steps: dict[str, float] = {}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim > 0:
                tensors[f"optimizer.{number}.{name}"] = value
            else:
                steps[f"{number}.{name}"] = float(value)
    tensors["rng.torch"] = torch_state
    tensors["order"] = torch.from_numpy(order)
    if hard is not None:
        tensors |= {"hard.labels": hard.labels, "hard.density": hard.density}
    metadata = {
        "progress": json.dumps(asdict(progress)),
        "rng.numpy": numpy_state,
        "optimizer": json.dumps(steps),
    }
    write_atomic(path, lambda temporary: save_file(tensors, str(temporary), metadata))


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, rng: Rng
) -> Restored:
    """Restore model, optimiser and generators in place. Raises RunError on a broken file."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        model.load_state_dict(_under("model.", tensors))
        _restore_optimizer(optimizer, tensors, json.loads(metadata["optimizer"]))
        rng.restore(metadata["rng.numpy"], tensors["rng.torch"])
        hard = None
        if "hard.labels" in tensors:
            hard = HardNegatives(tensors["hard.labels"], tensors["hard.density"])
        progress = Progress(**json.loads(metadata["progress"]))
        return Restored(progress, tensors["order"].numpy(), hard)
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as exc:
        raise RunError(f"{path} cannot be resumed from ({exc}): delete it to start anew") from exc


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], scalars: dict[str, float]
) -> None:
    state: dict[int, dict[str, object]] = {}
    for name, tensor in _under("optimizer.", tensors).items():
        number, _, part = name.partition(".")
        state.setdefault(int(number), {})[part] = tensor
    for name, value in scalars.items():
        number, _, part = name.partition(".")
        state.setdefault(int(number), {})[part] = int(value)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

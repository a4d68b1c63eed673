"""The randomness of a training run: one seed, two generators, and a state for checkpoints.

NumPy draws permutations and label pools; torch draws tensors, such as dropout masks. The
run's seed seeds both.
"""

import json
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rng:
    """The two generators of a run."""

    numpy: np.random.Generator
    torch: torch.Generator

    @classmethod
    def from_seed(cls, seed: int) -> "Rng":
        """Both generators: NumPy's from `seed`, torch's from NumPy's first draw."""
        numpy = np.random.default_rng(seed)
        return cls(numpy, torch.Generator().manual_seed(int(numpy.integers(2**62))))

    def state(self) -> tuple[str, Tensor]:
        """NumPy's state as JSON and torch's as a byte tensor."""
        return json.dumps(self.numpy.bit_generator.state), self.torch.get_state()

    def restore(self, numpy_state: str, torch_state: Tensor) -> None:
        """Set both generators to a state that `state` returned."""
        self.numpy.bit_generator.state = json.loads(numpy_state)
        self.torch.set_state(torch_state)

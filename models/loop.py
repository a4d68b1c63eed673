"""The training loop: epochs, optimiser, schedule, validation, early stopping, checkpoints.

It knows a method only by `wants_refresh`, `refresh` and `train_step`. The test split never comes
here. A loss that is not a number stops the run and names the step.
"""

import logging
import math
import resource
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from scipy.sparse import csr_array

from models.atomic import write_atomic
from models.checkpoint import Progress, load_checkpoint, save_checkpoint
from models.config import TrainConfig
from models.data.tokens import TokenizedTexts
from models.errors import TrainingError
from models.methods.astra import Astra, TrainingRows, embed
from models.metrics import precision_at_k
from models.progress import track
from models.rng import Rng
from models.runs import CHECKPOINT_FILE, MODEL_FILE, Run

log = logging.getLogger(__name__)

_QUERIES_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Validation:
    """Held-out texts and their labels, on which everything is chosen."""

    texts: TokenizedTexts
    labels: csr_array


def train(model: Astra, rows: TrainingRows, validation: Validation, run: Run, rng: Rng) -> Progress:
    """Train to the end or to an early stop; leaves the best epoch's weights in the run folder.

    Goes on from the run's checkpoint if there is one. Raises TrainingError, RunError.
    """
    config = run.config.train
    optimizer = torch.optim.SparseAdam(
        [
            {"params": list(model.encoder.parameters()), "base_lr": config.encoder_lr},
            {"params": list(model.labels.parameters()), "base_lr": config.label_lr},
        ]
    )
    loop = _Loop(model, rows, validation, run, rng, optimizer)
    checkpoint = run.folder / CHECKPOINT_FILE
    if checkpoint.is_file():
        restored = load_checkpoint(checkpoint, model, optimizer, rng)
        loop.progress, loop.order, model.hard = restored.progress, restored.order, restored.hard
        place = restored.progress
        log.info("resuming in epoch %d at step %d", place.epoch + 1, place.step_in_epoch)
    while loop.progress.epoch < config.epochs and not loop.out_of_patience:
        loop.epoch()
    checkpoint.unlink(missing_ok=True)
    return loop.progress


class _Loop:
    """State of one training run between steps."""

    def __init__(
        self,
        model: Astra,
        rows: TrainingRows,
        validation: Validation,
        run: Run,
        rng: Rng,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.model, self.rows, self.validation = model, rows, validation
        self.run, self.rng, self.optimizer = run, rng, optimizer
        self.config: TrainConfig = run.config.train
        self.progress = Progress()
        # Rows without a label teach a sampled loss nothing but "no": they are left out.
        self.usable = np.flatnonzero(np.diff(rows.labels.indptr))
        self.order: NDArray[np.int64] = np.empty(0, np.int64)
        self.steps_per_epoch = math.ceil(len(self.usable) / self.config.batch_size)
        self._saved_at = time.monotonic()

    @property
    def out_of_patience(self) -> bool:
        progress = self.progress
        return progress.epoch - 1 - progress.best_epoch >= self.config.patience

    def epoch(self) -> None:
        """One pass over the rows (or what is left of it), then validation."""
        started = time.monotonic()
        progress = self.progress
        if progress.step_in_epoch == 0:
            if self.model.wants_refresh(progress.epoch):
                self.model.refresh(self.rows)
            self.order = self.rng.numpy.permutation(self.usable)
            progress.loss_sum = 0.0
        left = self.steps_per_epoch - progress.step_in_epoch
        for picked in track(self._batches(), left, f"epoch {progress.epoch + 1}"):
            self._step(picked)
        progress.seconds += time.monotonic() - started
        self._finish_epoch(time.monotonic() - started)

    def _batches(self) -> Iterator[NDArray[np.int64]]:
        size = self.config.batch_size
        for step in range(self.progress.step_in_epoch, self.steps_per_epoch):
            yield self.order[step * size : (step + 1) * size]

    def _step(self, picked: NDArray[np.int64]) -> None:
        progress = self.progress
        rate = self._learning_rate_share(progress.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model.train_step(self.rows, picked, self.rng)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {progress.step} (epoch {progress.epoch + 1}, rows "
                f"{picked[:8].tolist()}...): lower train.encoder_lr or train.label_lr; "
                f"{self.run.folder} still holds the last good checkpoint"
            )
        loss.backward()
        self.optimizer.step()
        progress.loss_sum += value
        progress.step += 1
        progress.step_in_epoch += 1
        if time.monotonic() - self._saved_at >= self.config.checkpoint_seconds:
            self._save()

    def _learning_rate_share(self, step: int) -> float:
        """Linear warm-up, then linear decay to zero at the last planned step."""
        total = self.steps_per_epoch * self.config.epochs
        warm_up = min(1.0, (step + 1) / max(1, self.config.warmup_steps))
        return warm_up * (1.0 - step / total)

    def _finish_epoch(self, seconds: float) -> None:
        progress = self.progress
        ranked = rank_exactly(self.model, self.validation.texts, 5)
        p_at_1 = 100 * precision_at_k(ranked, self.validation.labels, 1)
        record = {
            "epoch": progress.epoch + 1,
            "loss": progress.loss_sum / self.steps_per_epoch,
            "validation_p_at_1": p_at_1,
            "validation_p_at_5": 100 * precision_at_k(ranked, self.validation.labels, 5),
            "seconds": round(seconds, 2),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        self.run.log(record)
        log.info(
            "epoch %(epoch)d: loss %(loss).3f, validation P@1 %(validation_p_at_1).2f, "
            "P@5 %(validation_p_at_5).2f, %(seconds).1f s",
            record,
        )
        if p_at_1 > progress.best_p_at_1:
            progress.best_p_at_1, progress.best_epoch = p_at_1, progress.epoch
            save_weights(self.run.folder / MODEL_FILE, self.model)
        progress.epoch += 1
        progress.step_in_epoch = 0
        self._save()

    def _save(self) -> None:
        save_checkpoint(
            self.run.folder / CHECKPOINT_FILE,
            self.model,
            self.optimizer,
            self.rng,
            self.progress,
            self.order,
            self.model.hard,
        )
        self._saved_at = time.monotonic()
        log.debug("checkpoint: %s", asdict(self.progress))


def save_weights(path: Path, model: Astra) -> None:
    """The model's weights alone, atomically."""
    write_atomic(path, lambda temporary: save_file(model.state_dict(), str(temporary)))


@torch.no_grad()
def rank_exactly(model: Astra, texts: TokenizedTexts, k: int) -> NDArray[np.int64]:
    """Top k labels of every text by exact inner product, (n, k)."""
    queries = torch.from_numpy(embed(model.encoder, texts))
    weight = model.labels.weight.detach()
    k = min(k, len(weight))
    chunks = [
        (queries[start : start + _QUERIES_AT_ONCE] @ weight.T).topk(k).indices
        for start in range(0, len(queries), _QUERIES_AT_ONCE)
    ]
    return torch.cat(chunks).numpy()

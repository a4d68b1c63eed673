"""The training loop: phases, epochs, schedule, validation, early stopping, checkpoints, logs.

It trains any `models.training.method.Method`. It never reads the test split. If a loss is not a
number, the run stops with an error that names the step and its rows. Under torchrun every rank runs
the loop, and the first rank writes the files.
"""

import json
import logging
import math
import resource
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.config import TrainConfig
from models.data.tokens import TokenizedTexts
from models.encoders.build import embed
from models.errors import TrainingError
from models.progress import track
from models.quality.metrics import ndcg_at_k, precision_at_k
from models.quality.ranking import EvaluationSet
from models.rng import Rng
from models.runs import CHECKPOINT_FILE, FAILED_BATCH_FILE, MODEL_FILE, TENSORBOARD_FOLDER, Run
from models.training.board import Board
from models.training.checkpoint import (
    Place,
    Progress,
    State,
    load_checkpoint,
    phase_of,
    save_checkpoint,
    weights_of,
    write_tensors,
)
from models.training.method import Method, Phase, Trainable
from models.training.optimizers import Optimizers, scheduled_share
from models.training.training_rows import TrainingRows
from service.atomic import write_text

log = logging.getLogger(__name__)

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The type that the encoder computes in, by `train.precision`."""

_FIRST_SCALE = 1024.0
"""Of fp16's loss; it doubles every 2,000 steps. A choice: our losses are sums over labels, whose
gradients at torch's 65,536 overflow, and then a group skips steps that the others make."""

Validation: TypeAlias = EvaluationSet[TokenizedTexts]
"""Validation texts and their labels, which choose the best epoch."""


def train(
    model: Method, rows: TrainingRows, validation: Validation, run: Run, rng: Rng
) -> Progress:
    """Train to the end or to an early stop; writes the best epoch's weights to the run folder.

    It resumes from the run's checkpoint if there is one. Raises TrainingError if the device is
    not there or a loss or weight is not finite, and RunError if a file is damaged or cannot be
    written.
    """
    config = run.config.train
    if config.precision == "fp16" and model.world.size > 1:
        raise TrainingError(
            "train.precision is fp16, which scales its loss for each process apart: use bf16"
        )
    model.place(device_for(config), AUTOCAST[config.precision])
    loop = Loop(model, rows, validation, run, rng)
    loop.run_to_end()
    return loop.progress


def device_for(config: TrainConfig) -> torch.device:
    """The device of `train.device`. Raises TrainingError if torch does not find it."""
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise TrainingError("train.device is cuda, but torch finds no CUDA device: set auto or cpu")
    return torch.device("cuda" if has_cuda and config.device != "cpu" else "cpu")


class Loop:
    """A training run: its model, data, optimisers and progress.

    Pre-training is one too (`models.methods.contrastive`), with `title`, files and keys of its own.
    """

    title = ""
    """Stands before "epoch" and "loss" in what the user reads."""
    checkpoint_file = CHECKPOINT_FILE
    board_folder = TENSORBOARD_FOLDER
    rate_keys = "train.encoder_lr or train.label_lr"
    """The keys to lower where a loss is no number."""

    def __init__(
        self,
        model: Trainable,
        rows: TrainingRows,
        validation: Validation,
        run: Run,
        rng: Rng,
        config: TrainConfig | None = None,
    ) -> None:
        self.model, self.rows, self.validation = model, rows, validation
        self.run, self.rng = run, rng
        self.config = config or run.config.train
        self.phases = model.phases(self.config)
        self.optimizers = self._fresh_optimizers(0)
        self.progress = Progress()
        self.world = model.world
        # Rows without a label are left out: they hold only negatives.
        self.usable = np.flatnonzero(np.diff(rows.labels.indptr))
        self.order: NDArray[np.int64] = np.empty(0, np.int64)
        self.steps_per_epoch = math.ceil(len(self.usable) / self.config.batch_size)
        self.scaler = torch.amp.GradScaler(
            model.device.type, _FIRST_SCALE, enabled=self.config.precision == "fp16"
        )
        self.board: Board | None = None
        self._checkpoint = run.folder / self.checkpoint_file
        self._saved_at = time.monotonic()

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.world.leads

    @property
    def phase(self) -> Phase:
        """The current phase."""
        return self.phases[self.progress.phase]

    @property
    def in_last_phase(self) -> bool:
        """Whether this phase makes the final model."""
        return self.progress.phase + 1 == len(self.phases)

    @property
    def out_of_patience(self) -> bool:
        """Whether the last phase has had too many epochs without a better one."""
        progress = self.progress
        since = progress.epoch - 1 - progress.best_epoch
        return self.in_last_phase and since >= self.config.patience

    def resume(self) -> bool:
        """Restore the checkpoint; returns False if there is none."""
        if not self._checkpoint.is_file():
            return False
        self.optimizers = self._fresh_optimizers(phase_of(self._checkpoint))
        place = load_checkpoint(self._checkpoint, self._state)
        self.progress, self.order = place.progress, place.order
        self.model.restore(place.transient)
        progress = self.progress
        at = progress.epoch + 1, progress.step_in_epoch
        log.info("resuming %sin epoch %d at step %d", self.title, *at)
        return True

    def begin_phase(self, number: int) -> None:
        """Start phase `number` at the current epoch, with fresh optimisers and no best epoch."""
        progress = self.progress
        progress.phase, progress.first_epoch, progress.first_step = (
            number,
            progress.epoch,
            progress.step,
        )
        progress.best_p_at_1 = progress.best_ndcg_at_5 = -1.0
        progress.best_epoch = progress.epoch - 1
        self.model.begin(number, self.rows, self.rng)
        self.optimizers = self._fresh_optimizers(number)

    def run_to_end(self) -> None:
        """Run the phases and epochs that the checkpoint leaves, fewer after an early stop."""
        resumes = self.resume()
        if self.leads:
            self.board = Board(self.run.folder / self.board_folder, self.progress.step)
        try:
            if not resumes:
                self.begin_phase(0)
            self._run_phases()
        finally:
            if self.board is not None:
                self.board.close()

    def _run_phases(self) -> None:
        while True:
            last_epoch = self.progress.first_epoch + self.phase.epochs
            while self.progress.epoch < last_epoch and not self.out_of_patience:
                self.epoch()
            if self.in_last_phase:
                return
            self.begin_phase(self.progress.phase + 1)

    def epoch(self) -> None:
        """Run one pass over the rows, or the rest of one after a resume, then validate."""
        started = time.monotonic()
        progress = self.progress
        if progress.step_in_epoch == 0:
            self.order = self._next_order()
            progress.loss_sum = 0.0
        steps = self.steps_per_epoch - progress.step_in_epoch
        for batch in track(self._batches(), steps, f"{self.title}epoch {progress.epoch + 1}"):
            self._step(batch)
        seconds = time.monotonic() - started
        progress.seconds += seconds
        self._finish_epoch(seconds)

    def _next_order(self) -> NDArray[np.int64]:
        """This epoch's order (n,) of the usable rows."""
        if self.model.wants_refresh(self.progress.epoch - self.progress.first_epoch):
            self.model.refresh(self.rows)
        return self.rng.numpy.permutation(self.usable)

    def _fresh_optimizers(self, phase: int) -> Optimizers:
        model = self.model
        return Optimizers(
            model.parameter_groups(),
            self.config,
            rates=self.phases[phase].rates,
        )

    def _batches(self) -> Iterator[NDArray[np.int64]]:
        size = self.config.batch_size
        for step in range(self.progress.step_in_epoch, self.steps_per_epoch):
            yield self.order[step * size : (step + 1) * size]

    def _step(self, batch: NDArray[np.int64]) -> None:
        progress = self.progress
        self.optimizers.zero_grad()
        value = 0.0
        for part in np.array_split(batch, min(self.config.accumulate, len(batch))):
            loss = self.model.train_step(self.rows, part, self.rng) * (len(part) / len(batch))
            value += float(self.world.sum(loss.detach()))
            if not math.isfinite(value):
                self._stop_at_nan(value, batch)
            self.scaler.scale(loss).backward()
        self.world.sum_gradients(self.optimizers.encoder_parameters)
        rate = scheduled_share(
            self.config,
            progress.step - progress.first_step,
            self.steps_per_epoch * self.phase.epochs,
        )
        self.optimizers.step(rate, self.scaler)
        if self.board is not None:
            self.board.add_scalar("train/loss", value, progress.step)
            self.board.add_scalar("train/rate", rate, progress.step)
        progress.loss_sum += value
        progress.step += 1
        progress.step_in_epoch += 1
        if self._due():
            self._save()

    def _due(self) -> bool:
        """Whether a checkpoint is due; the first rank's clock decides for all ranks."""
        is_late = time.monotonic() - self._saved_at >= self.config.checkpoint_seconds
        return bool(self.world.agree(is_late))

    def _stop_at_nan(self, value: float, batch: NDArray[np.int64]) -> None:
        uids = [self.rows.uids[row] for row in batch]
        report = self.run.folder / FAILED_BATCH_FILE
        about = {"step": self.progress.step, "epoch": self.progress.epoch + 1, "rows": uids}
        if self.leads:
            write_text(report, json.dumps(about))
        more = f" and {len(uids) - 5} more" if len(uids) > 5 else ""
        raise TrainingError(
            f"the {self.title}loss is {value} at step {self.progress.step} "
            f"(epoch {self.progress.epoch + 1}), rows {', '.join(uids[:5])}{more} "
            f"(all in {report}): {self._way_out()}"
        )

    def _way_out(self) -> str:
        checkpoint = "there was no checkpoint yet"
        if self._checkpoint.is_file():
            checkpoint = f"{self._checkpoint} holds the last good checkpoint"
        return f"lower {self.rate_keys}; {checkpoint}"

    def _finish_epoch(self, seconds: float) -> None:
        progress = self.progress
        if self._broken():
            raise TrainingError(
                f"some weights are no numbers after epoch {progress.epoch + 1}: {self._way_out()}"
            )
        ranked = rank(self.model, self.validation, 5)
        p_at_1 = 100 * precision_at_k(ranked, self.validation.truth, 1)
        ndcg_at_5 = self.world.agree(100 * ndcg_at_k(ranked, self.validation.truth, 5))
        record: dict[str, Any] = {"stage": self.phase.name} if self.phase.name else {}
        record |= {
            "epoch": progress.epoch + 1,
            "loss": progress.loss_sum / self.steps_per_epoch,
            "validation_p_at_1": p_at_1,
            "validation_p_at_5": 100 * precision_at_k(ranked, self.validation.truth, 5),
            "validation_ndcg_at_5": ndcg_at_5,
            "seconds": round(seconds, 2),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        if self.board is not None:
            self._announce(record)
        # Not P@1: its noise from epoch to epoch is larger than what most epochs gain.
        if ndcg_at_5 > progress.best_ndcg_at_5:
            progress.best_ndcg_at_5, progress.best_p_at_1 = ndcg_at_5, p_at_1
            progress.best_epoch = progress.epoch
            weights = weights_of(self.model, self._whole)
            if self.leads and self.in_last_phase:
                write_tensors(self.run.folder / MODEL_FILE, weights)
        progress.epoch += 1
        progress.step_in_epoch = 0
        self._save()

    def _announce(self, record: dict[str, Any]) -> None:
        log.info(
            "epoch %(epoch)d: loss %(loss).3f, validation P@1 %(validation_p_at_1).2f, "
            "P@5 %(validation_p_at_5).2f, %(seconds).1f s",
            record,
        )
        self._publish(record)

    def _publish(self, record: dict[str, Any]) -> None:
        """Add an epoch's figures to metrics.jsonl and to the curves."""
        self.run.log(record)
        assert self.board is not None
        for name, value in record.items():
            if name not in ("epoch", "stage"):
                self.board.add_scalar(f"epoch/{name}", value, int(record["epoch"]))
        self.board.flush()

    @property
    def _state(self) -> State:
        return State(self.model, self.optimizers, self.rng, self.model.shard, self._whole)

    def _whole(self, rows: Tensor) -> Tensor:
        return self.world.gather(rows, self.model.n_labels)

    def _broken(self) -> bool:
        """Whether any rank has infinite weights, or some that are not numbers."""
        parameters = self.model.parameters()
        broken = not all(bool(torch.isfinite(p.detach()).all()) for p in parameters)
        return bool(self.world.sum(torch.tensor(float(broken))) > 0)

    def _save(self) -> None:
        if self._broken():
            return  # keep the last good checkpoint; the next loss or epoch's end raises an error
        place = Place(self.progress, self.order, self.model.transient())
        save_checkpoint(self._checkpoint, self._state, place, write=self.leads)
        self._saved_at = time.monotonic()
        log.debug("checkpoint: %s", asdict(self.progress))


def rank(model: Trainable, validation: Validation, k: int) -> NDArray[np.int64]:
    """The top k labels (n, k) that the method gives each text, without the filter pairs."""
    embeddings = embed(model.encoder, validation.queries)
    return validation.first(model.best(embeddings, k + validation.spare).labels, k)

"""Contrastive pre-training: the encoder learns to place a text near the texts of its labels.

It is the first stage of NGAME (Dahiya et al., WSDM 2023). One encoder reads queries and label
texts. The negatives of a query are the labels that the other queries of its batch drew. A batch
consists of clusters of similar queries, which makes these negatives hard without a search.

Three things differ from the paper. Clusters come from recursive balanced 2-means. Their size
doubles every few epochs; the paper lists epochs and sizes. A label that several queries drew is
encoded and compared once.

    symbol   here               meaning
    z_i      queries            unit embedding of query i, (n, dim)
    v_l      names              unit embedding of label l's text, (m, dim), of the m labels drawn
    s_il     scores             <z_i, v_l>, (n, m)
    l_i      draw_positives     the one positive of query i in this epoch
    C        cluster_size       queries of a cluster, which share a batch

    1. regroup      cluster the queries by their current embeddings, or only shuffle the clusters
    2. train_step   draw a positive for each query, score all pairs, hinge or cross-entropy
    3. measure      rank label texts for validation texts; the best epoch's encoder is saved

Pre-training learns no classifiers. The method learns them later, from this encoder and its label
embeddings. It runs in one process and never splits a batch, because the queries of a batch are each
other's negatives.
"""

import logging

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from models.config import Config, PretrainConfig, TrainConfig
from models.data.tokens import TokenizedTexts
from models.encoders.build import TextEncoder, embed, encode_batch
from models.quality.metrics import precision_at_k, recall_at_k
from models.quality.ranking import top_products
from models.rng import Rng
from models.runs import PRETRAIN_CHECKPOINT_FILE, PRETRAINED_FILE, TENSORBOARD_FOLDER, Run
from models.training.checkpoint import State, write_tensors
from models.training.clusters import clustered_order
from models.training.loop import AUTOCAST, Loop, Validation, rank
from models.training.losses import contrastive_hinge, info_nce
from models.training.method import Phase, Ranking, Trainable
from models.training.negatives import allowed_in_pool
from models.training.training_rows import TrainingRows, cells_of

log = logging.getLogger(__name__)

_OWN_KEYS = {
    "epochs",
    "batch_size",
    "encoder_lr",
    "projection_lr",
    "transformer_lr",
    "warmup_steps",
    "patience",
}
"""Keys of `pretrain` that override the same keys of `train`."""


class Contrastive(Trainable):
    """The encoder with its training data, and one training step, on the encoder's device."""

    def __init__(
        self,
        encoder: TextEncoder,
        points: TrainingRows,
        label_texts: TokenizedTexts,
        config: PretrainConfig,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__(encoder, len(label_texts))
        self.place(next(encoder.parameters()).device, autocast)
        self.points, self.label_texts, self.config = points, label_texts, config
        # A query without a label has no positive.
        self.usable = np.flatnonzero(np.diff(points.labels.indptr))
        self._cumulative_targets = np.concatenate(
            [[0.0], np.cumsum(points.labels.data, dtype=np.float64)]
        )

    def phases(self, config: TrainConfig) -> list[Phase]:
        """One phase."""
        return [Phase("pretrain", config.epochs)]

    def best(self, queries: NDArray[np.float32], k: int) -> Ranking:
        """The k labels whose texts are nearest to embeddings `queries` (n, dim), with cosines."""
        return Ranking(*top_products(queries, embed(self.encoder, self.label_texts), k))

    def cluster_size(self, epoch: int) -> int:
        """Queries in a cluster in this epoch; never more than in a batch."""
        config = self.config
        doubled = config.cluster_size << (epoch // config.cluster_double_epochs)
        return min(doubled, config.batch_size)

    def regroup(self, epoch: int, order: NDArray[np.int64], rng: Rng) -> NDArray[np.int64]:
        """This epoch's order (n,) of the usable rows, in which clusters stay together.

        `order` is the last epoch's.
        """
        size = self.cluster_size(epoch)
        if size == 1:
            return rng.numpy.permutation(self.usable)
        has_grown = epoch > 0 and size != self.cluster_size(epoch - 1)
        if has_grown or epoch % self.config.cluster_refresh_epochs == 0:
            vectors = embed(self.encoder, self.points.texts, self.autocast)[self.usable]
            order = self.usable[clustered_order(vectors, size, rng.numpy)]
        # The last cluster may be smaller. It stays last, so that it does not shift the others.
        whole = len(order) // size * size
        clusters = order[:whole].reshape(-1, size)
        return np.concatenate([rng.numpy.permutation(clusters).ravel(), order[whole:]])

    def draw_positives(self, batch: NDArray[np.int64], rng: Rng) -> NDArray[np.int64]:
        """A label of each row of `batch`, (n,), drawn in proportion to its target."""
        labels = self.points.labels
        firsts, ends = labels.indptr[batch], labels.indptr[batch + 1]
        low, high = self._cumulative_targets[firsts], self._cumulative_targets[ends]
        at = low + rng.numpy.random(len(batch)) * (high - low)
        places = np.searchsorted(self._cumulative_targets, at, side="right") - 1
        return labels.indices[np.clip(places, firsts, ends - 1)].astype(np.int64)

    def train_step(self, rows: TrainingRows, batch: NDArray[np.int64], rng: Rng) -> Tensor:
        """The loss of the rows `batch` (n,) among each other, ready for `backward`."""
        config = self.config
        labels, columns = np.unique(self.draw_positives(batch, rng), return_inverse=True)
        queries = encode_batch(self.encoder, rows.texts, batch, self.autocast)
        names = encode_batch(self.encoder, self.label_texts, labels, self.autocast)
        scores = queries @ names.T  # (n, m)
        positives = torch.from_numpy(columns).to(self.device)
        known = cells_of(rows.known, batch)
        allowed = allowed_in_pool(torch.from_numpy(labels), known, len(batch)).to(self.device)
        if config.loss == "infonce":
            return info_nce(scores, positives, allowed, temperature=config.temperature)
        return contrastive_hinge(
            scores,
            positives,
            allowed,
            margin=config.margin,
            hardest=config.hard_negatives,
            temperature=config.temperature,
        )


def pretrain(
    encoder: TextEncoder,
    points: TrainingRows,
    label_texts: TokenizedTexts,
    validation: Validation,
    run: Run,
) -> None:
    """Train `encoder` in place, and save its best epoch to the run folder; 0 epochs do nothing.

    It resumes from its checkpoint if there is one. If pre-training is done already, it only loads
    the encoder; so one process trains, and the others load after it. It has generators of its own,
    so the method draws the same numbers with and without pre-training. Raises TrainingError if the
    loss is not a number, and RunError if a file is damaged or cannot be written.
    """
    config = run.config
    if not config.pretrain.epochs:
        return
    if "pretraining" not in run.measured():
        training = _training_of(config)
        autocast = AUTOCAST[training.precision]
        model = Contrastive(encoder, points, label_texts, config.pretrain, autocast)
        rng = Rng.from_seed(config.seed)
        _Loop(model, points, validation, run, rng, training).run_to_end()
    (run.folder / PRETRAIN_CHECKPOINT_FILE).unlink(missing_ok=True)
    encoder.load_state_dict(load_file(str(run.require(PRETRAINED_FILE, "train"))))


def _training_of(config: Config) -> TrainConfig:
    """`train`, with the keys that `pretrain` overrides; a batch is never split."""
    own = config.pretrain.model_dump(include=_OWN_KEYS)
    return config.train.model_copy(update=own | {"accumulate": 1})


class _Loop(Loop):
    """Pre-training: rows in clusters, and the best epoch by P@1 of the label texts."""

    model: Contrastive
    title = "pre-training "
    checkpoint_file = PRETRAIN_CHECKPOINT_FILE
    # Its own folder: the method's loop counts steps anew, and would void curves beside its own.
    board_folder = f"{TENSORBOARD_FOLDER}/pretrain"
    rate_keys = "pretrain.encoder_lr"

    def run_to_end(self) -> None:
        """Train from the checkpoint or the start, to the last epoch or an early stop."""
        super().run_to_end()
        self.run.record(pretraining=self.progress.outcome())

    def begin_phase(self, number: int) -> None:
        """Measure the untrained encoder as epoch 0; only a better epoch replaces it."""
        super().begin_phase(number)
        self._measure({"epoch": 0})
        self._save()

    @property
    def _state(self) -> State:
        return State(self.model.encoder, self.optimizers, self.rng)

    def _next_order(self) -> NDArray[np.int64]:
        return self.model.regroup(self.progress.epoch, self.order, self.rng)

    def _finish_epoch(self, seconds: float) -> None:
        progress = self.progress
        progress.epoch += 1
        progress.step_in_epoch = 0
        loss = progress.loss_sum / self.steps_per_epoch
        self._measure({"epoch": progress.epoch, "loss": loss, "seconds": round(seconds, 2)})
        self._save()

    def _measure(self, record: dict[str, float]) -> None:
        """Rank label texts for validation texts, log figures, save the encoder if P@1 is best."""
        progress, truth = self.progress, self.validation.truth
        ranked = rank(self.model, self.validation, 10)
        p_at_1 = 100 * precision_at_k(ranked, truth, 1)
        record |= {
            "validation_p_at_1": p_at_1,
            "validation_r_at_10": 100 * recall_at_k(ranked, truth, 10),
        }
        log.info(
            "pre-training epoch %d: validation P@1 %.2f, R@10 %.2f%s",
            record["epoch"],
            p_at_1,
            record["validation_r_at_10"],
            "".join(
                f", {name} {record[name]:.3f}" for name in ("loss", "seconds") if name in record
            ),
        )
        self._publish({"stage": self.phase.name, **record})
        if p_at_1 > progress.best_p_at_1:
            progress.best_p_at_1, progress.best_epoch = p_at_1, int(record["epoch"]) - 1
            write_tensors(self.run.folder / PRETRAINED_FILE, self.model.encoder.state_dict())

"""ASTRA: an encoder and one classifier vector a label, trained with mixed negatives.

ASTRA (arXiv 2409.20156 and its patent text) describes the mixture, the uniform-only epochs and the
index over classifier vectors. The loss, a sum over labels, is Renee's (Jain et al., MLSys 2023).
MIPS-s (Qaraei and Babbar, 2023) is the predecessor. The paper does not print the importance
weights; docs/decisions/0003 derives ours.

    symbol   here                 meaning
    z_i      queries              unit embedding of query i, (n, dim)
    w_l      labels.weight        classifier vector of label l, (n_labels, dim)
    s_il     logits               scale * <z_i, w_l> + bias
    H_i      HardNegatives        nearest wrong labels of query i at the last refresh
    q_i      density              probabilities of the hard draws from H_i
    omega    negatives.weigh      1 / (m_h q_i(l) + m_u / n_labels), or another weight mode

    1. build        classifiers start at label text; label texts join the training rows
    2. refresh      every `refresh_epochs` after the uniform-only ones: mine H_i anew
    3. train_step   positives + shared uniform pool + hard draws -> sampled BCE and softmax, or
                    BCE over every label
    4. servable     the encoder, and the classifier vectors times `scale`

Under torchrun a rank holds the label rows `shard` and scores only these
(models.training.distributed).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor, nn
from torch.nn.functional import normalize

from models.config import MethodConfig, TrainConfig
from models.data.tokens import TokenizedTexts
from models.encoders.build import TextEncoder, embed, encode_batch
from models.quality.ranking import top_products
from models.rng import Rng
from models.sparse_rows import pair_products
from models.training.distributed import World
from models.training.losses import Cells, full_bce, log_partition, sampled_bce, sampled_softmax
from models.training.method import Method, Phase, Ranking, Servable
from models.training.negatives import (
    HardNegatives,
    allowed_in_pool,
    density_in_pool,
    drawn_in_pool,
    hard_negatives,
    mine,
    uniform_pool,
    weigh,
)
from models.training.optimizers import LABELS
from models.training.training_rows import TrainingRows, cells_of, with_label_rows


class Astra(Method):
    """The model and one training step of it; the loop owns optimisers, schedule and checkpoints."""

    def __init__(
        self, encoder: TextEncoder, labels: Tensor, config: MethodConfig, world: World | None = None
    ) -> None:
        super().__init__(encoder, len(labels), world)
        self.labels = nn.Embedding.from_pretrained(labels[self.shard].clone(), freeze=False)
        self.config = config
        self.hard: HardNegatives | None = None

    def place(self, device: torch.device, autocast: torch.dtype | None) -> None:
        """Move the encoder to `device`, and the label vectors too, unless `label_device` is host.

        `autocast` is the type that the encoder computes in, None for fp32.
        """
        self.device, self.autocast = device, autocast
        self.encoder.to(device)
        if self.config.label_device == "encoder":
            self.labels.to(device)

    def phases(self, config: TrainConfig) -> list[Phase]:
        """One phase; mining begins within it."""
        return [Phase("", config.epochs)]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The encoder's groups and the label vectors."""
        return super().parameter_groups() | {LABELS: list(self.labels.parameters())}

    def transient(self) -> dict[str, Tensor]:
        """The hard negatives, empty before the first refresh."""
        if self.hard is None:
            return {}
        return {"labels": self.hard.labels, "density": self.hard.density}

    def restore(self, transient: Mapping[str, Tensor]) -> None:
        """Set the hard negatives that `transient` returned."""
        self.hard = HardNegatives(**transient) if transient else None

    def wants_refresh(self, epoch: int) -> bool:
        """Whether to mine hard negatives before this epoch, counted from 0."""
        config = self.config
        since = epoch - config.uniform_only_epochs
        if config.kind == "full-bce" or not config.hard_negatives or since < 0:
            return False
        return since % config.refresh_epochs == 0 if config.refresh_epochs else since == 0

    def refresh(self, rows: TrainingRows) -> None:
        """Mine each row's nearest wrong labels with the current encoder and label vectors."""
        config, world, n = self.config, self.world, len(rows)
        part = world.share(n)
        queries = embed(self.encoder, rows.texts.slice(part), self.autocast)
        known = rows.known[part]
        labels, scores = mine(
            self.label_vectors(), queries, known, config.hard_pool, config.search == "exact"
        )
        self.hard = hard_negatives(
            world.gather(torch.from_numpy(labels), n),
            world.gather(torch.from_numpy(scores), n),
            config.score_scale,
            config.logit_bias,
        )

    def label_vectors(self) -> NDArray[np.float32]:
        """All label vectors, (n_labels, dim), on the host."""
        shard = self.labels.weight.detach()
        return self.world.gather(shard, self.n_labels).cpu().numpy()

    def best(self, queries: NDArray[np.float32], k: int) -> Ranking:
        """The top k labels of embeddings `queries` (n, dim), by exact inner product."""
        labels, products = top_products(queries, self.label_vectors(), k)
        logits = products * self.config.score_scale + self.config.logit_bias
        return Ranking(labels, expit(logits))

    def servable(self) -> Servable:
        """The encoder, and label vectors times `score_scale`: products + `logit_bias` = logits."""
        vectors = self.label_vectors() * self.config.score_scale
        return Servable(self.encoder, np.ascontiguousarray(vectors, np.float32))

    def train_step(self, rows: TrainingRows, batch: NDArray[np.int64], rng: Rng) -> Tensor:
        """This rank's part of the loss of the rows `batch` (n,), ready for `backward`."""
        queries = self._queries(rows, batch, rng)
        if self.config.kind == "full-bce":
            return self._full(queries, rows, batch)
        return self._sampled(queries, rows, batch, rng)

    def _queries(self, rows: TrainingRows, batch: NDArray[np.int64], rng: Rng) -> Tensor:
        config, n = self.config, len(batch)
        ours = batch[self.world.share(n)]
        # A rank without a share still encodes one row: backward needs a graph on every rank.
        texts = ours if len(ours) else batch[:1]
        part = encode_batch(self.encoder, rows.texts, texts, self.autocast)
        queries = self.world.gather_rows(part[: len(ours)], n)  # (n, dim)
        keep = torch.rand(queries.shape, generator=rng.torch) >= config.dropout
        return queries * keep.to(queries.device) / (1.0 - config.dropout)

    def _full(self, queries: Tensor, rows: TrainingRows, batch: NDArray[np.int64]) -> Tensor:
        config, weight = self.config, self.labels.weight
        return full_bce(
            queries.to(weight.device),
            weight,
            self._in_shard(cells_of(rows.labels, batch)).to(weight.device),
            self._in_shard(cells_of(rows.ignored, batch)).to(weight.device),
            scale=config.score_scale,
            bias=config.logit_bias,
            chunk=config.label_chunk,
        )

    def _sampled(
        self, queries: Tensor, rows: TrainingRows, batch: NDArray[np.int64], rng: Rng
    ) -> Tensor:
        positives = self._in_shard(cells_of(rows.labels, batch))
        draws = self._draw(rows, batch, rng)
        inside = slice(
            *torch.searchsorted(draws.pool, torch.tensor([self.shard.start, self.shard.stop]))
        )
        # A draw without a weight (another rank's, or none) does not read its row: the optimiser
        # moves every row that was read.
        counted = draws.hard_weights > 0
        of_pairs, of_pool = pair_products(
            queries,
            self.labels.weight,
            torch.cat([positives.rows, counted.nonzero()[:, 0]]),
            torch.cat([positives.labels, draws.hard[counted] - self.shard.start]),
            draws.pool[inside] - self.shard.start,
        )
        logits, n_positives = self._logits(of_pairs), len(positives.rows)
        positive_logits, hard_logits = logits[:n_positives], logits[n_positives:]
        places = counted.flatten().nonzero()[:, 0].to(logits.device)
        spread = logits.new_zeros(counted.numel()).index_add(0, places, hard_logits)
        negatives = [
            (spread.view(counted.shape), draws.hard_weights.to(logits.device)),
            (self._logits(of_pool), draws.pool_weights[:, inside].to(logits.device)),
        ]
        targets = positives.values.to(queries.device)
        n, share = len(batch), self.config.softmax_share
        loss = sampled_bce(positive_logits, targets, negatives, n)
        if not share:
            return loss
        at = positives.rows.to(queries.device)
        part = log_partition(negatives, positive_logits, targets, at)
        parts = self.world.gather_rows(part, n * self.world.size)
        partition = parts.view(-1, n).logsumexp(dim=0)[at]
        softmax = sampled_softmax(positive_logits, targets, partition, n)
        return (1 - share) * loss + share * softmax

    def _draw(self, rows: TrainingRows, batch: NDArray[np.int64], rng: Rng) -> "_Draws":
        """A uniform pool for the batch and hard draws for each query, with their weights."""
        config = self.config
        size = 0 if config.hard_only and self.hard is not None else config.uniform_negatives
        pool = uniform_pool(self.n_labels, size, rng.numpy)
        known = cells_of(rows.known, batch)
        allowed = allowed_in_pool(pool, known, len(batch)).float()
        n_known = torch.bincount(known.rows, minlength=len(batch)).unsqueeze(1)
        sizes = len(pool), self.n_labels, self.n_labels - n_known
        if self.hard is None:
            density = torch.zeros_like(allowed)
            weights = weigh(config, [(density, allowed)], torch.zeros(1, 1), *sizes)
            nothing = torch.empty(len(batch), 0)
            return _Draws(pool, weights[0], nothing.long(), nothing)
        hard_rows = torch.from_numpy(batch)
        density = self.hard.density[hard_rows]
        n_hard = (density.sum(dim=1, keepdim=True) > 0) * float(config.hard_negatives)
        pool_density = density_in_pool(pool, self.hard.labels[hard_rows], density)
        if config.kind == "mips-s":
            hard, hard_density = self.hard.nearest(hard_rows, config.hard_negatives)
            # A nearest label counts once, also where the pool has drawn it too.
            allowed = allowed * ~drawn_in_pool(pool, hard, hard_density > 0)
        else:
            hard, hard_density = self.hard.draw(hard_rows, config.hard_negatives, rng.torch)
        weights = weigh(
            config,
            [(pool_density, allowed), (hard_density, (hard_density > 0).float())],
            n_hard,
            *sizes,
        )
        return _Draws(pool, weights[0], hard, weights[1] * self._owned(hard))

    def _owned(self, labels: Tensor) -> Tensor:
        return ((labels >= self.shard.start) & (labels < self.shard.stop)).float()

    def _in_shard(self, cells: Cells) -> Cells:
        if self.world.size == 1:
            return cells
        owned = self._owned(cells.labels) > 0
        return Cells(cells.rows[owned], cells.labels[owned] - self.shard.start, cells.values[owned])

    def _logits(self, products: Tensor) -> Tensor:
        return products * self.config.score_scale + self.config.logit_bias


@dataclass(frozen=True, slots=True)
class _Draws:
    """A step's negatives: `pool` (m_u,) with weights (n, m_u), and `hard` with weights (n, m_h)."""

    pool: Tensor
    pool_weights: Tensor
    hard: Tensor
    hard_weights: Tensor


def build(
    encoder: TextEncoder,
    label_texts: TokenizedTexts,
    config: MethodConfig,
    points: TrainingRows,
    world: World | None = None,
) -> tuple[Astra, TrainingRows]:
    """The untrained model, and its training rows: the points, then label texts if configured."""
    with torch.no_grad():
        vectors = torch.from_numpy(embed(encoder, label_texts))
        norm = config.label_init_norm if config.label_init == "text" else 0.0
        vectors = normalize(vectors, dim=1) * norm
    rows = points
    if config.label_rows:
        rows = with_label_rows(points, label_texts, config.label_cooccurrence)
    return Astra(encoder, vectors, config, world), rows

"""ASTRA: an encoder and one classifier vector per label, trained with mixed negatives.

Papers: ASTRA (arXiv 2409.20156 and its patent text) for the mixture, the uniform-only epochs and
the index over the classifier vectors; Renee for the loss, summed over labels. The importance
weights are this project's reading of the paper (docs/decisions/0003).

    symbol   here                 meaning
    z_i      queries              unit embedding of query i, (n, dim)
    w_l      labels.weight        classifier vector of label l, (n_labels, dim)
    s_il     logits               scale * <z_i, w_l> + bias
    H_i      HardNegatives        nearest wrong labels of query i at the last refresh
    q_i      density              how hard draws are made from H_i
    omega    balance_weights      1 / (m_h q_i(l) + m_u / n_labels)

    1. build        classifiers start from label text; label texts join the training rows
    2. refresh      every `refresh_epochs` after the uniform-only ones: mine H_i afresh
    3. train_step   positives + shared uniform pool + hard draws -> sampled BCE
    4. servable     the encoder, and the classifier vectors times `scale`

With `uniform_negatives` at the label count and `hard_negatives` at 0 this is full BCE, exactly.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, eye_array, vstack
from torch import Tensor, nn
from torch.nn.functional import embedding, normalize

from models.config import MethodConfig
from models.data.tokens import TokenizedTexts, concatenate
from models.encoders.bag import BagEncoder
from models.losses import sampled_bce
from models.negatives import (
    HardNegatives,
    balance_weights,
    density_in_pool,
    hard_negatives,
    mine,
    places_in_pool,
    uniform_pool,
)
from models.rng import Rng

_TEXTS_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Texts and labels that a method trains on; label-text rows, if any, stand after the points."""

    texts: TokenizedTexts
    labels: csr_array

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class Servable:
    """What export and index need: the encoder, and the vectors (n_labels, dim) of the index."""

    encoder: BagEncoder
    label_vectors: NDArray[np.float32]


class Astra(nn.Module):
    """The model and one training step of it; the loop owns optimisers, schedule and checkpoints."""

    def __init__(self, encoder: BagEncoder, labels: Tensor, config: MethodConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.labels = nn.Embedding.from_pretrained(labels, freeze=False, sparse=True)
        self.config = config
        self.hard: HardNegatives | None = None

    def wants_refresh(self, epoch: int) -> bool:
        """Whether hard negatives are to be mined before this epoch (counted from 0)."""
        config = self.config
        since = epoch - config.uniform_only_epochs
        return config.hard_negatives > 0 and since >= 0 and since % config.refresh_epochs == 0

    def refresh(self, rows: TrainingRows) -> None:
        """Mine each row's nearest wrong labels with the encoder and labels as they are now."""
        config = self.config
        queries = embed(self.encoder, rows.texts)
        vectors = self.labels.weight.detach().numpy()
        labels, scores = mine(vectors, queries, rows.labels, config.hard_pool)
        self.hard = hard_negatives(labels, scores, config.score_scale, config.logit_bias)

    def train_step(self, rows: TrainingRows, picked: NDArray[np.int64], rng: Rng) -> Tensor:
        """Loss of the picked rows, ready for `backward`."""
        config = self.config
        batch = rows.texts.batch(picked)
        queries = self.encoder(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask))
        keep = torch.rand(queries.shape, generator=rng.torch) >= config.dropout
        queries = queries * keep / (1.0 - config.dropout)  # (n, dim)

        positive_rows, positive_labels = positives_of(rows.labels, picked)
        positive_vectors = embedding(positive_labels, self.labels.weight, sparse=True)
        positive_logits = self._logits((queries[positive_rows] * positive_vectors).sum(dim=1))

        n_labels = self.labels.num_embeddings
        pool = uniform_pool(n_labels, config.uniform_negatives, rng.numpy)
        pool_logits = self._logits(queries @ embedding(pool, self.labels.weight, sparse=True).T)
        rate = len(pool) / n_labels
        pool_density = torch.zeros_like(pool_logits)
        n_hard = torch.zeros(len(picked), 1)
        negatives: list[tuple[Tensor, Tensor]] = []
        if self.hard is not None:
            hard_rows = torch.from_numpy(picked)
            density = self.hard.density[hard_rows]
            n_hard = (density.sum(dim=1, keepdim=True) > 0) * float(config.hard_negatives)
            pool_density = density_in_pool(pool, self.hard.labels[hard_rows], density)
            hard, drawn_density = self.hard.draw(hard_rows, config.hard_negatives, rng.torch)
            vectors = embedding(hard, self.labels.weight, sparse=True)  # (n, m_h, dim)
            hard_logits = self._logits(torch.bmm(vectors, queries.unsqueeze(2)).squeeze(2))
            weights = balance_weights(drawn_density, n_hard, rate) * (drawn_density > 0)
            negatives.append((hard_logits, weights))
        pool_weights = balance_weights(pool_density, n_hard, rate)
        places, found = places_in_pool(pool, positive_labels)
        pool_weights[positive_rows[found], places[found]] = 0.0
        negatives.append((pool_logits, pool_weights))
        return sampled_bce(positive_logits, negatives, len(picked))

    def _logits(self, products: Tensor) -> Tensor:
        return products * self.config.score_scale + self.config.logit_bias


def build(
    encoder: BagEncoder, label_texts: TokenizedTexts, config: MethodConfig, points: TrainingRows
) -> tuple[Astra, TrainingRows]:
    """The model, and the rows it trains on: the points, then one row a label if configured."""
    with torch.no_grad():
        vectors = torch.from_numpy(embed(encoder, label_texts))
        norm = config.label_init_norm if config.label_init == "text" else 0.0
        vectors = normalize(vectors, dim=1) * norm
    rows = points
    if config.label_rows:
        rows = with_label_rows(points, label_texts)
    return Astra(encoder, vectors, config), rows


def servable(model: Astra) -> Servable:
    """The trained parts as serving needs them: logit minus the constant bias = inner product."""
    vectors = model.labels.weight.detach().numpy() * model.config.score_scale
    return Servable(model.encoder, np.ascontiguousarray(vectors, np.float32))


def with_label_rows(points: TrainingRows, label_texts: TokenizedTexts) -> TrainingRows:
    """Append one row for each label: its own text, with itself as the only target (Renee)."""
    identity = eye_array(len(label_texts), dtype=np.float32, format="csr")
    labels = csr_array(vstack([points.labels, identity], format="csr"))
    return TrainingRows(concatenate(points.texts, label_texts), labels)


def positives_of(labels: csr_array, picked: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Positives of the picked rows as two vectors: place within the batch, and label."""
    counts = labels.indptr[picked + 1] - labels.indptr[picked]
    rows = np.repeat(np.arange(len(picked)), counts)
    firsts = np.repeat(labels.indptr[picked] - np.cumsum(counts) + counts, counts)
    places = labels.indices[firsts + np.arange(len(rows))]
    return torch.from_numpy(rows), torch.from_numpy(places.astype(np.int64))


@torch.no_grad()
def embed(encoder: BagEncoder, texts: TokenizedTexts) -> NDArray[np.float32]:
    """Embeddings of all texts, without dropout: (n, dim) float32."""
    rows = np.empty((len(texts), encoder.dim), np.float32)
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        picked = np.arange(start, min(start + _TEXTS_AT_ONCE, len(texts)))
        batch = texts.batch(picked)
        encoded = encoder(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask))
        rows[picked] = encoded.numpy()
    return rows

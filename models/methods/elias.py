"""ELIAS: it learns an encoder, clusters, label vectors, and the edges from clusters to labels.

The paper is arXiv 2210.08410. Differences: label vectors can start at label text, and label texts
can join the training rows, as for ASTRA. The `learned` phase keeps the label vectors, unless
`labels_anew` is set. Clusters come from embeddings only, and start at the mean of their labels. In
a cluster, edges that are a label's heaviest come first. Both losses are sums over labels.

    symbol   here                     meaning
    e        queries                  unit embedding of a query, dropout in training, (n, dim)
    W_C      clusters                 a linear layer: logits of clusters, times `score_scale`
    s_c      cluster_scores           min(1, alpha * softmax over clusters)
    theta    theta                    the parameter of each edge, (n_clusters, width)
    a_cl     edge_weights             min(1, beta * softmax over a cluster's edges), or 1 if fixed
    w_l      labels.weight            label vector; logit = score_scale * <w_l, e> + logit_bias
    K        shortlist                labels with the best s_c * a_cl over the chosen clusters

    1. initial   on balanced clusters of label vectors from the untrained encoder
    2. fixed     on clusters from the encoder after `initial`; its weights start anew
    3. learned   edges to the labels that each cluster's points have most; their weights are learnt
    train_step   clusters by score and the labels' own (teacher forcing) -> shortlist -> both BCEs
    best         the beam's clusters -> shortlist -> sigmoid(logit) * s_c * a_cl

It trains in one process. Label logits come from one product with all label vectors, as long as that
is cheaper than gathering a vector for each place of the shortlist.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from models.config import EliasConfig, MethodConfig, TrainConfig
from models.data.tokens import TokenizedTexts
from models.encoders.build import TextEncoder, embed, encode_batch
from models.rng import Rng
from models.sparse_rows import pair_products
from models.training.label_graph import (
    LabelGraph,
    balanced_clusters,
    centres,
    common_edges,
    label_vectors_of,
    usual_clusters,
)
from models.training.losses import path_bce
from models.training.method import Method, Phase, Ranking, Servable
from models.training.optimizers import LABELS
from models.training.path_scores import (
    all_paths,
    cluster_scores,
    edge_shares,
    edge_weights,
    shortlist,
)
from models.training.training_rows import TrainingRows, cells_of, targets_at, with_label_rows

INITIAL, FIXED, LEARNED = "initial", "fixed", "learned"
_FORCED = 5
"""Clusters that a training step visits beyond the beam. A choice: it leaves room for the parents of
a few labels; more would cost every step."""
_PATTERN_CLUSTERS = 20
"""Best clusters of a point that count for the weights of edges. A choice: four times the default
beam."""
_GATHER_BEYOND = 128
"""A gathered label vector costs about as much as this many labels of a dense product. An estimate;
no measurement is on record."""
_ROWS_AT_ONCE = 512
"""Our choice: bounds the memory of one ranking."""
_TINY = 1e-6
_AHEAD = 1e3
"""Added to a candidate's log score, it ranks every candidate before any number in [0, 1]."""


class Elias(Method):
    """The model and one training step of it; the loop owns optimisers, schedule and checkpoints."""

    edges: Tensor
    parents: Tensor
    learned: Tensor

    def __init__(
        self,
        encoder: TextEncoder,
        n_labels: int,
        config: MethodConfig,
        elias: EliasConfig,
        label_texts: TokenizedTexts | None = None,
    ) -> None:
        super().__init__(encoder, n_labels)
        self.config, self.elias = config, elias
        self.dense = n_labels <= _GATHER_BEYOND * elias.shortlist
        target = min(elias.clusters or usual_clusters(n_labels), n_labels)
        size = -(-n_labels // target)
        n_clusters, width = -(-n_labels // size), max(elias.kappa, size)
        self.labels = nn.Embedding(n_labels, encoder.dim)
        self.clusters = nn.Linear(encoder.dim, n_clusters)
        self.theta = nn.Parameter(torch.zeros(n_clusters, width))
        self.register_buffer("edges", torch.full((n_clusters, width), n_labels))
        self.register_buffer("parents", torch.full((n_labels,), -1))
        self.register_buffer("learned", torch.tensor(False))
        self._label_texts = label_texts
        self._untrained = _trained_parts(encoder) if elias.initial_epochs else {}

    def phases(self, config: TrainConfig) -> list[Phase]:
        """Those of `_phase_names`; the last has `train.epochs`."""
        elias = self.elias
        rates = {"clusters": elias.cluster_lr, "edges": elias.edge_lr}
        base_rates = {
            "tables": config.encoder_lr,
            "projection": config.projection_lr,
            "transformer": config.transformer_lr,
            "clusters": elias.cluster_lr,
        }
        later = rates | {name: rate * elias.learned_rate for name, rate in base_rates.items()}
        epochs = {INITIAL: elias.initial_epochs, FIXED: elias.fixed_epochs}
        *before, last = self._phase_names
        return [
            *(Phase(name, epochs[name], rates) for name in before),
            Phase(last, config.epochs, later if last == LEARNED else rates),
        ]

    def begin(self, phase: int, rows: TrainingRows, rng: Rng) -> None:
        """Cluster the labels by their current embeddings, or choose the edges to learn."""
        name = self._phase_names[phase]
        if name != LEARNED:
            self._fix_edges(rows, rng, anew=name == FIXED)
            self._restart_labels()
            return
        self._open_edges(rows, rng)
        if self.elias.labels_anew:
            self._restart_labels()

    @property
    def _phase_names(self) -> list[str]:
        first = [INITIAL] if self.elias.initial_epochs else []
        return [*first, FIXED, LEARNED] if self.elias.learned else [*first, FIXED]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The encoder's groups, the label vectors, the clusters and the edges."""
        return super().parameter_groups() | {
            LABELS: list(self.labels.parameters()),
            "clusters": list(self.clusters.parameters()),
            "edges": [self.theta],
        }

    def wants_refresh(self, epoch: int) -> bool:
        """Whether edges are learnt: then parents change, so each epoch computes them anew."""
        return bool(self.learned)

    @torch.no_grad()
    def refresh(self, rows: TrainingRows) -> None:
        """Set each label's parent: the cluster with the heaviest edge to it, -1 without an edge.

        Edges count with their shares before they are cut at 1, where many would be equal.
        """
        weights = self.edge_weights()
        if self.learned:
            weights = edge_shares(self.theta, self.edges, self.n_labels)
        heaviest = weights.new_zeros(self.n_labels + 1)
        heaviest.scatter_reduce_(0, self.edges.flatten(), weights.flatten(), "amax")
        cluster = torch.arange(len(weights), device=self.device).unsqueeze(1).expand_as(weights)
        is_best = (weights == heaviest[self.edges]) & (weights > 0)
        parents = torch.full_like(heaviest, -1, dtype=torch.long)
        labels = self.edges[is_best]
        parents.scatter_reduce_(0, labels, cluster[is_best], "amax")
        self.parents.copy_(parents[: self.n_labels])

    def cluster_logits(self, queries: Tensor) -> Tensor:
        """Logits (n, n_clusters) of embeddings (n, dim)."""
        return self.clusters(queries * self.config.score_scale)

    def edge_weights(self) -> Tensor:
        """Weights (n_clusters, width) of all edges; 1 and without gradient while they are fixed."""
        if not self.learned:
            return (self.edges < self.n_labels).float()
        return edge_weights(self.theta, self.edges, self.n_labels, self.elias.beta)

    def train_step(self, rows: TrainingRows, batch: NDArray[np.int64], rng: Rng) -> Tensor:
        """The loss of the rows `batch` (n,), ready for `backward`."""
        config = self.config
        queries = encode_batch(self.encoder, rows.texts, batch, self.autocast)  # (n, dim)
        keep = torch.rand(queries.shape, generator=rng.torch) >= config.dropout
        queries = queries * keep.to(queries.device) / (1.0 - config.dropout)
        logits = self.cluster_logits(queries)
        scores, weights = cluster_scores(logits, self.elias.alpha), self.edge_weights()
        visited = self._training_clusters(logits.detach(), rows, batch, rng)
        listed = shortlist(
            scores, visited, self.edges, weights, self.n_labels, self.elias.shortlist
        )
        paths = listed.path_scores(scores, weights)  # (n, K)
        label_logits = self._label_logits(queries, listed.labels)
        at = listed.labels.cpu().numpy()
        targets = torch.from_numpy(targets_at(rows.labels, batch, at)).to(self.device)
        counted = listed.reached
        if rows.ignored.nnz:
            ignored = torch.from_numpy(targets_at(rows.ignored, batch, at)).to(self.device)
            counted = counted & (ignored == 0)
        return path_bce(label_logits, paths, targets, counted, self.elias.path_weight)

    @torch.no_grad()
    def best(self, queries: NDArray[np.float32], k: int) -> Ranking:
        """The top k labels of embeddings `queries` (n, dim), by the configured beam and shortlist.

        If the beam of a query reaches fewer than k labels, all clusters answer it.
        """
        k = min(k, self.n_labels)
        weights = self.edge_weights()
        parts = [
            self._best(torch.from_numpy(queries[start : start + _ROWS_AT_ONCE]), weights, k)
            for start in range(0, len(queries), _ROWS_AT_ONCE)
        ]
        labels, probabilities = (
            torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)
        )
        return Ranking(labels, probabilities)

    def servable(self) -> Servable:
        """The encoder, label vectors times `score_scale`, and the graph with its edge weights."""
        scale = self.config.score_scale
        with torch.no_grad():
            graph = LabelGraph(
                clusters=self.clusters.weight.cpu().numpy() * np.float32(scale),
                bias=self.clusters.bias.cpu().numpy(),
                edges=self.edges.cpu().numpy().astype(np.int32),
                weights=self.edge_weights().cpu().numpy(),
                alpha=self.elias.alpha,
            )
            vectors = self.labels.weight.cpu().numpy() * np.float32(scale)
        return Servable(self.encoder, vectors, graph)

    def _best(self, queries: Tensor, weights: Tensor, k: int) -> tuple[Tensor, Tensor]:
        queries = queries.to(self.device)
        logits = self.cluster_logits(queries)
        scores = cluster_scores(logits, self.elias.alpha)
        beam = logits.topk(min(self.elias.beam, logits.shape[1]), dim=1).indices
        listed = shortlist(
            scores, beam, self.edges, weights, self.n_labels, max(k, self.elias.shortlist)
        )
        paths = listed.path_scores(scores, weights)
        scored = paths * self._label_logits(queries, listed.labels).sigmoid()
        scored = torch.where(listed.reached, scored, -1.0)
        short = listed.reached.sum(dim=1) < k
        if scored.shape[1] < k or short.all():
            return self._best_of_all(queries, scores, weights, k)
        top = scored.topk(k, dim=1)
        labels, probabilities = listed.labels.gather(1, top.indices), top.values
        if short.any():
            labels[short], probabilities[short] = self._best_of_all(
                queries[short], scores[short], weights, k
            )
        return labels, probabilities

    def _best_of_all(
        self, queries: Tensor, scores: Tensor, weights: Tensor, k: int
    ) -> tuple[Tensor, Tensor]:
        """The top k labels over all paths of every query."""
        paths = all_paths(scores, self.edges, weights, self.n_labels)
        config = self.config
        logits = queries @ self.labels.weight.T * config.score_scale + config.logit_bias
        top = (paths * logits.sigmoid()).topk(k, dim=1)
        return top.indices, top.values

    def _label_logits(self, queries: Tensor, labels: Tensor) -> Tensor:
        """Logits (n, K) of `labels` (n, K) for `queries` (n, dim)."""
        weight = self.labels.weight
        if self.dense:
            products = (queries @ weight.T).gather(1, labels)
        else:
            at = torch.arange(len(labels)).repeat_interleave(labels.shape[1])
            pairs, _ = pair_products(queries, weight, at, labels.flatten(), at[:0])
            products = pairs.view_as(labels)
        return products * self.config.score_scale + self.config.logit_bias

    @torch.no_grad()
    def _training_clusters(
        self, logits: Tensor, rows: TrainingRows, batch: NDArray[np.int64], rng: Rng
    ) -> Tensor:
        """Clusters (n, beam + 5) that a step visits: the beam, and the parents of a row's labels.

        If these are too many, some are drawn by score; if too few, random others are added.
        """
        n_clusters = logits.shape[1]
        cells = cells_of(rows.labels, batch).to(logits.device)
        parents = self.parents[cells.labels]
        has_parent = parents >= 0
        beam = logits.topk(min(self.elias.beam, n_clusters), dim=1).indices
        candidate = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, beam, True)
        candidate[cells.rows[has_parent], parents[has_parent]] = True
        uniform = torch.rand(logits.shape, generator=rng.torch).clamp(min=1e-9).to(logits.device)
        # The largest log scores with Gumbel noise are a draw by score, without replacement
        # (Kool et al., ICML 2019).
        noisy = logits.log_softmax(dim=1) - (-uniform.log()).clamp(min=1e-9).log()
        order = torch.where(candidate, noisy + _AHEAD, uniform)
        return order.topk(min(self.elias.beam + _FORCED, n_clusters), dim=1).indices

    def _fix_edges(self, rows: TrainingRows, rng: Rng, anew: bool) -> None:
        """Put each label into one balanced cluster; `anew` then resets the encoder."""
        vectors = label_vectors_of(embed(self.encoder, rows.texts), rows.labels)
        members = balanced_clusters(vectors, len(self.edges), rng.numpy)
        if anew and self._untrained:
            self.encoder.load_state_dict(self._untrained, strict=False)
            vectors = label_vectors_of(embed(self.encoder, rows.texts), rows.labels)
        with torch.no_grad():
            self.clusters.weight.copy_(torch.from_numpy(centres(vectors, members)))
            self.clusters.bias.zero_()
            self.edges.fill_(self.n_labels)
            self.edges[:, : members.shape[1]] = torch.from_numpy(members)
            padded = torch.full((self.n_labels + 1,), -1)
            own = torch.arange(len(members)).unsqueeze(1).expand(members.shape)
            padded[torch.from_numpy(members)] = own
            self.parents.copy_(padded[: self.n_labels])
            self.learned.fill_(False)

    def _open_edges(self, rows: TrainingRows, rng: Rng) -> None:
        """Replace the edges by each cluster's heaviest ones, and start to learn their weights."""
        clusters, scores = self._best_clusters(rows)
        edges, sums = common_edges(rows.labels, clusters, scores, *self.theta.shape)
        with torch.no_grad():
            self.edges.copy_(torch.from_numpy(edges))
            self.theta.copy_(self._edge_start(sums, rng))
            self.learned.fill_(True)

    def _edge_start(self, sums: NDArray[np.float32], rng: Rng) -> Tensor:
        """The first theta: weights follow the root of an edge's share of `sums`, or are random.

        Random is the paper's start. Weights in proportion to the share itself would cap a rare
        label's probability far below its true value.
        """
        if self.elias.edge_start == "random":
            return torch.rand(self.theta.shape, generator=rng.torch)
        shares = sums / np.maximum(sums.sum(axis=1, keepdims=True), _TINY)
        return torch.from_numpy(np.log(np.maximum(shares, _TINY)) / 2)

    @torch.no_grad()
    def _best_clusters(self, rows: TrainingRows) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The 20 best clusters of every row and their scores, both (n, 20)."""
        queries = torch.from_numpy(embed(self.encoder, rows.texts, self.autocast))
        parts = []
        for part in queries.split(_ROWS_AT_ONCE):
            scores = cluster_scores(self.cluster_logits(part.to(self.device)), self.elias.alpha)
            parts.append(scores.topk(min(_PATTERN_CLUSTERS, scores.shape[1]), dim=1))
        return (
            torch.cat([part.indices for part in parts]).cpu().numpy(),
            torch.cat([part.values for part in parts]).cpu().numpy(),
        )

    def _restart_labels(self) -> None:
        """Set label vectors to their start: the embedding of the label's text, or zero."""
        config = self.config
        assert self._label_texts is not None, (
            "load_model gives a model that cannot be trained further"
        )
        with torch.no_grad():
            vectors = torch.from_numpy(embed(self.encoder, self._label_texts))
            norm = config.label_init_norm if config.label_init == "text" else 0.0
            self.labels.weight.copy_(normalize(vectors, dim=1) * norm)


def _trained_parts(encoder: TextEncoder) -> dict[str, Tensor]:
    """A copy of the trainable weights of an encoder, by name."""
    return {
        name: parameter.detach().clone()
        for name, parameter in encoder.named_parameters()
        if parameter.requires_grad
    }


def build(
    encoder: TextEncoder,
    label_texts: TokenizedTexts,
    config: MethodConfig,
    elias: EliasConfig,
    points: TrainingRows,
) -> tuple[Elias, TrainingRows]:
    """The untrained model, and its training rows: the points, then label texts if configured."""
    rows = points
    if config.label_rows:
        rows = with_label_rows(points, label_texts, config.label_cooccurrence)
    return Elias(encoder, len(label_texts), config, elias, label_texts), rows

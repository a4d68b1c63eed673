"""What the re-ranker's trees know about a candidate: numbers from arrays, a whole batch at once.

Training and serving call the same `feature_matrix`. A number that is not known is NaN: the words of
a query by vector, the frequency of a label that was added to the catalogue. No function looks at
another query of its batch.

Features read a few shared results, which `Batch` computes at the first use: where neighbours and
partners have a candidate, and which of a label's tokens are in the query.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.core.index.memory_labels import MemoryLabels
from service.core.rerank.knowledge import Knowledge
from service.core.types import Float32Rows, Hits, Int64Rows, TokenBatch

MASS_WIDTHS: Final = (10, 30, 100)
"""Neighbours that the three masses look at: what `memory.neighbours` tries by default."""
NEIGHBOURS: Final = MASS_WIDTHS[-1]
"""Most neighbours that features read."""
_BAND_OF: Final = np.repeat(np.arange(len(MASS_WIDTHS)), np.diff(MASS_WIDTHS, prepend=0))
"""For each neighbour, which of the three bands it lies in: the first 10, the next 20, the rest."""
_LAST_OF: Final = np.array(MASS_WIDTHS) - 1
_LEAST_WEIGHT: Final = 1e-6
"""Keeps a share of nothing at 0: a text of special tokens alone weighs nothing."""

Values: TypeAlias = NDArray[np.floating]
"""A feature of all candidates: (n, m), or what broadcasts to it."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of n queries, (n, length), with 1 in `mask` on each real one.

    A query without a text has no real one, and so no feature of words.
    """

    ids: Int64Rows
    mask: Int64Rows

    @classmethod
    def gather(cls, n: int, chunks: Sequence[tuple[Sequence[int], TokenBatch]]) -> "Tokens":
        """The tokens of n queries, from the chunks that were encoded, each with its positions."""
        width = max((batch.ids.shape[1] for _, batch in chunks), default=1)
        ids, mask = np.zeros((2, n, width), np.int64)
        for positions, batch in chunks:
            ids[positions, : batch.ids.shape[1]] = batch.ids
            mask[positions, : batch.ids.shape[1]] = batch.mask
        return cls(ids, mask)

    def of(self, positions: Sequence[int]) -> "Tokens":
        """The tokens of these queries."""
        return Tokens(self.ids[positions], self.mask[positions])

    def joined(self, owners: Sequence[int], n: int) -> "Tokens":
        """The tokens of n queries, where row i is a text of the query `owners[i]`; they rise."""
        real = self.mask > 0
        lengths = np.bincount(owners, real.sum(axis=1), n).astype(np.int64)
        filled = np.arange(int(lengths.max(initial=1))) < lengths[:, None]
        ids, mask = np.zeros((2, *filled.shape), np.int64)
        ids[filled], mask[filled] = self.ids[real], self.mask[real]
        return Tokens(ids, mask)


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest remembered queries, best first, and the labels of all remembered ones.

    `hits` are rows of the memory and cosines, (n, w), of which 100 are read. `temperature` divides
    the cosines in the softmax that says how much each neighbour counts.
    """

    hits: Hits
    labels: MemoryLabels
    temperature: float


class Batch:
    """The candidates of n queries, m for each, and what is known about them.

    `logits` (n, m) fall along each row. Label rows from `knowledge.n_labels` on were added to the
    catalogue.
    """

    def __init__(
        self,
        rows: Int64Rows,
        logits: Float32Rows,
        knowledge: Knowledge,
        tokens: Tokens | None,
        neighbours: Neighbours | None,
    ) -> None:
        self.rows = rows
        self.logits = logits
        self.knowledge = knowledge
        self.tokens = tokens
        self.neighbours = neighbours

    @cached_property
    def gaps(self) -> Values:
        """How far each logit lies below the query's first, at most 0."""
        return self.logits - self.logits[:, :1]

    @cached_property
    def shares(self) -> Values:
        """Softmax of the logits among the candidates."""
        weights = np.exp(self.gaps)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    @cached_property
    def masses(self) -> Values:
        """(3, n, m): the neighbours' weight on each candidate, among the first 10, 30, 100."""
        return self.of_known(self._memory[0])

    @cached_property
    def nearest(self) -> Values:
        """Cosine of the nearest neighbour that has the candidate, -1 if none has it."""
        return self.of_known(self._memory[1])

    @cached_property
    def cooccurrences(self) -> Values:
        """Sum over the other candidates c of P(candidate | c), weighed by the softmax of c."""
        n, m = self.rows.shape
        partners = self.knowledge.partners[self._known_rows]  # (n, m, width)
        # What a label that was added occurs with is not known.
        of_whom = self.shares if self._is_unknown is None else self.shares * ~self._is_unknown
        weights = self.knowledge.partner_shares[self._known_rows] * of_whom[..., None]
        starts = np.arange(n, dtype=np.int64) * self._stride
        places, found = self._places((starts[:, None, None] + partners).ravel())
        sums = np.bincount(places, weights.ravel()[found], n * m)
        return self.of_known(sums.astype(np.float32).reshape(n, m))

    @cached_property
    def common(self) -> Values:
        """Weight of the label's tokens that are in the query; NaN for a query without a text."""
        tokens = self.knowledge.tokens[self._known_rows]  # (n, m, width)
        n = len(tokens)
        # The last column stands for the padding, which no query has.
        holds = np.zeros((n, len(self.knowledge.token_weights)), np.bool_)
        holds[np.arange(n)[:, None], self._query_tokens] = True
        holds[:, -1] = False
        starts = np.arange(n)[:, None, None] * holds.shape[1]
        shared = holds.ravel()[starts + tokens]
        weights = self.knowledge.token_weights[tokens] * shared
        return self.of_known(np.where(self._has_text, weights.sum(axis=2), np.nan))

    @cached_property
    def label_weights(self) -> Values:
        """Weight of all tokens of the label."""
        return self.of_known(self.knowledge.label_weights[self._known_rows])

    @cached_property
    def query_weights(self) -> Values:
        """(n, 1): weight of all tokens of the query; NaN for a query without a text."""
        # A cumulative sum adds from left to right, so padding cannot move the last bits.
        weights = self.knowledge.token_weights[self._query_tokens].cumsum(axis=1)[:, -1:]
        return np.where(self._has_text, weights, np.nan)

    @cached_property
    def frequencies(self) -> Values:
        """Log of 1 plus the training points with the label; NaN for one that was added."""
        found: Values = self.knowledge.frequencies[self._known_rows]
        if self._stride == self.knowledge.n_labels + 1:
            return found
        return np.where(self.rows < self.knowledge.n_labels, found, np.nan)

    def of_known(self, values: Values) -> Values:
        """The values (n, m), NaN for labels that were added to the catalogue."""
        unknown = self._is_unknown
        return values if unknown is None else np.where(unknown, np.nan, values)

    @cached_property
    def _is_unknown(self) -> NDArray[np.bool_] | None:
        unknown = np.isnan(self.frequencies)
        return unknown if unknown.any() else None

    @cached_property
    def _known_rows(self) -> Int64Rows:
        n_labels = self.knowledge.n_labels
        return (
            self.rows
            if self._stride == n_labels + 1
            else np.where(self.rows < n_labels, self.rows, 0)
        )

    @cached_property
    def _has_text(self) -> NDArray[np.bool_]:
        if self.tokens is None:
            return np.zeros((len(self.rows), 1), np.bool_)
        return np.asarray(self.tokens.mask.any(axis=1, keepdims=True))

    @cached_property
    def _query_tokens(self) -> Int64Rows:
        """(n, length), with the padding's number where there is no token."""
        padding = len(self.knowledge.token_weights) - 1
        if self.tokens is None:
            return np.full((len(self.rows), 1), padding, np.int64)
        return np.where(self.tokens.mask > 0, np.minimum(self.tokens.ids, padding), padding)

    @cached_property
    def _memory(self) -> tuple[Values, Values]:
        neighbours = self.neighbours
        n, m = self.rows.shape
        if neighbours is None:
            return np.full((len(MASS_WIDTHS), n, m), np.nan), np.full((n, m), np.nan)
        labels = neighbours.labels
        cosines = neighbours.hits.scores[:, :NEIGHBOURS]
        weights = np.exp((cosines - cosines[:, :1]) / neighbours.temperature)
        rows = neighbours.hits.rows[:, :NEIGHBOURS].ravel()
        starts = labels.offsets[rows]
        lengths = labels.offsets[rows + 1] - starts
        ends = lengths.cumsum()
        nearby = np.arange(len(rows)).repeat(lengths)  # the neighbour of each entry
        entries = (starts - ends + lengths)[nearby] + np.arange(len(nearby))
        width, size, n_bands = cosines.shape[1], n * m, len(MASS_WIDTHS)
        owners = nearby // width
        places, found = self._places(owners * self._stride + labels.labels[entries])
        nearby = nearby[found]
        # Sums over the first 10, the next 20 and the next 70 give all three masses.
        bands = _BAND_OF.take(nearby - owners[found] * width, mode="clip")
        at = bands * size + places
        sums = np.bincount(at, weights.ravel()[nearby], n_bands * size).reshape(n_bands, n, m)
        wholes = weights.cumsum(axis=1).take(_LAST_OF, axis=1, mode="clip").T[..., None]
        nearest = np.full(size, -1.0, np.float32)
        # Of several neighbours the last write counts, so write the nearest last.
        nearest[places[::-1]] = cosines.ravel()[nearby[::-1]]
        return sums.cumsum(axis=0) / wholes, nearest.reshape(n, m)

    @cached_property
    def _sorted_keys(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """One integer for each query and candidate, rising, and the place of each in (n, m)."""
        starts = np.arange(0, len(self.rows) * self._stride, self._stride)
        keys = (starts[:, None] + self.rows).ravel()
        order = keys.argsort()
        return keys[order], order

    @cached_property
    def _stride(self) -> int:
        """Distance of the keys of two queries. Row -1 is a key that no candidate has."""
        return max(self.knowledge.n_labels, int(self.rows.max(initial=0)) + 1) + 1

    def _places(self, wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
        """Which of the keys `wanted` (e,), of a query and a label row, are those of candidates.

        Returns their places in the flat (n, m), and the positions of the keys that have one.
        """
        keys, order = self._sorted_keys
        at = keys.searchsorted(wanted)
        (found,) = (keys.take(at, mode="clip") == wanted).nonzero()
        return order[at[found]], found


def logit(batch: Batch) -> Values:
    """The label index's score, as a logit."""
    return batch.logits


def softmax(batch: Batch) -> Values:
    """Share of the candidate in the softmax over the query's candidates, in (0, 1]."""
    return batch.shares


def gap(batch: Batch) -> Values:
    """Logit minus the query's highest logit, at most 0."""
    return batch.gaps


def rank(batch: Batch) -> Values:
    """Place of the candidate in the search, from 0."""
    return np.arange(batch.rows.shape[1], dtype=np.float32)


def memory_mass_10(batch: Batch) -> Values:
    """Weight of those of the 10 nearest neighbours that have the label, in [0, 1]."""
    return np.asarray(batch.masses[0])


def memory_mass_30(batch: Batch) -> Values:
    """Weight of those of the 30 nearest neighbours that have the label, in [0, 1]."""
    return np.asarray(batch.masses[1])


def memory_mass_100(batch: Batch) -> Values:
    """Weight of those of the 100 nearest neighbours that have the label, in [0, 1]."""
    return np.asarray(batch.masses[2])


def memory_nearest(batch: Batch) -> Values:
    """Cosine of the nearest neighbour that has the label, in [-1, 1]; -1 if none has it."""
    return batch.nearest


def memory_first(batch: Batch) -> Values:
    """Cosine of the nearest neighbour, whatever labels it has, in [-1, 1]."""
    if batch.neighbours is None:
        return np.full((1, 1), np.nan)
    return batch.neighbours.hits.scores[:, :1]


def frequency(batch: Batch) -> Values:
    """Log of 1 plus the number of training points with the label."""
    return batch.frequencies


def cooccurrence(batch: Batch) -> Values:
    """Expected P(label | another candidate) in the training data, by softmax, in [0, 1]."""
    return batch.cooccurrences


def label_share(batch: Batch) -> Values:
    """Share of the label's tokens that are in the query, each weighed by rarity, in [0, 1]."""
    return batch.common / np.maximum(batch.label_weights, _LEAST_WEIGHT)


def query_share(batch: Batch) -> Values:
    """Share of the query's tokens that are in the label, each weighed by rarity, in [0, 1]."""
    return batch.common / np.maximum(batch.query_weights, _LEAST_WEIGHT)


def label_length(batch: Batch) -> Values:
    """Weight of all tokens of the label, by rarity: long names of rare words weigh most."""
    return batch.label_weights


def query_length(batch: Batch) -> Values:
    """Weight of all tokens of the query, by rarity."""
    return batch.query_weights


Source: TypeAlias = Literal["scores", "memory", "labels", "text"]


@dataclass(frozen=True, slots=True)
class Feature:
    """A function of a batch, and what it needs.

    `scores` are always there. `memory` may be missing, `text` too, and `labels` (training counts
    and the tokens of label texts) are missing for a label that was added to the catalogue.
    """

    compute: Callable[[Batch], Values]
    needs: tuple[Source, ...]


FEATURES: Final[Mapping[str, Feature]] = {
    "logit": Feature(logit, ("scores",)),
    "softmax": Feature(softmax, ("scores",)),
    "gap": Feature(gap, ("scores",)),
    "rank": Feature(rank, ("scores",)),
    "memory_mass_10": Feature(memory_mass_10, ("labels", "memory")),
    "memory_mass_30": Feature(memory_mass_30, ("labels", "memory")),
    "memory_mass_100": Feature(memory_mass_100, ("labels", "memory")),
    "memory_nearest": Feature(memory_nearest, ("labels", "memory")),
    "memory_first": Feature(memory_first, ("memory",)),
    "frequency": Feature(frequency, ("labels",)),
    "cooccurrence": Feature(cooccurrence, ("labels",)),
    "label_share": Feature(label_share, ("labels", "text")),
    "query_share": Feature(query_share, ("labels", "text")),
    "label_length": Feature(label_length, ("labels",)),
    "query_length": Feature(query_length, ("text",)),
}
"""The features by name; a bundle's manifest names those that its trees take, in their order."""


def feature_matrix(names: Sequence[str], batch: Batch) -> Float32Rows:
    """The features `names` of all candidates, (n * m, len(names)) float32, query after query.

    NaN stands for what is not known. Raises KeyError for an unknown name.
    """
    n, m = batch.rows.shape
    matrix = np.empty((n, m, len(names)), np.float32)
    if n:
        for column, name in enumerate(names):
            matrix[:, :, column] = FEATURES[name].compute(batch)
    return matrix.reshape(n * m, len(names))

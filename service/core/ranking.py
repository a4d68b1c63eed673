"""Ranker: from embeddings to labels in their order, by search, filters, re-ranking and rules."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from service.core.calibration import Calibration
from service.core.catalogue.arrangement import Arrangement
from service.core.catalogue.label_rules import RuledLabels
from service.core.catalogue.live import LiveCatalogue
from service.core.catalogue.snapshot import Snapshot
from service.core.index.protocol import LabelIndex
from service.core.labels.filtered_search import Searchable, resolve_filter, search_filtered
from service.core.labels.moves import Moves
from service.core.rerank.features import Tokens
from service.core.rerank.reranker import Reranker
from service.core.types import FilterPlan, Float32Rows, Hits, LabelFilter, no_hits


@dataclass(frozen=True, slots=True)
class Ranked:
    """The hits of n queries in the order of the answer, with raw scores, and the served `scores`.

    `searched` are the rows as the index ranked them, if they were re-ranked, which took `rerank_s`.
    """

    hits: Hits
    scores: Float32Rows
    plan: FilterPlan | None
    searched: NDArray[np.int64] | None = None
    rerank_s: float = 0.0
    rules: NDArray[np.int8] | None = None
    unruled: Float32Rows | None = None


@dataclass(frozen=True, slots=True)
class Ranker:
    """The parts of an engine that rank labels, on one state of its catalogue, the `snapshot`.

    Labels may change meanwhile: whoever ranks a batch makes a ranker of its own for it.
    """

    index: LabelIndex
    catalogue: LiveCatalogue
    snapshot: Snapshot | None
    calibration: Calibration
    reranker: Reranker | None
    rules: RuledLabels | None
    clock: Callable[[], float]

    def rank(
        self,
        vectors: Float32Rows,
        tokens: Tokens | None,
        depth: int,
        effort: str,
        label_filter: LabelFilter | None,
        hidden: NDArray[np.int64] | None,
        moves: Moves | None,
    ) -> Ranked:
        """Search, re-rank where the effort does, and calibrate."""
        hits, plan, head = self.hits(vectors, depth, effort, label_filter, hidden, moves)
        if self.reranker is None or not depth or not self.rerank_depth(effort):
            return Ranked(hits, self.calibration.apply(hits.scores, head.scores), plan)
        began_s, searched = self.clock(), hits.rows
        hits, head = self.reranker.rerank(hits, head, vectors, tokens, effort)
        rerank_s = self.clock() - began_s
        scores = self.reranker.calibration.apply(hits.scores, head.scores)
        return Ranked(hits, scores, plan, searched, rerank_s)

    def arrange(
        self,
        ranked: Ranked,
        effort: str,
        moves: Moves | None,
        diversity: float,
        hidden: NDArray[np.int64] | None,
        k: int,
    ) -> Ranked:
        """The ranked labels in the order that label rules and diversity give them."""
        n_hidden = 0 if hidden is None else len(hidden)
        if not diversity:
            hidden = None  # queries of several items may share the group
        arrangement = Arrangement(self.index, self.snapshot, moves, diversity, hidden, k + n_hidden)
        calibration = self.calibration
        if self.reranker is not None and self.rerank_depth(effort):
            calibration = self.reranker.calibration
        arranged = arrangement.of(ranked.hits, ranked.scores, calibration.score_kind)
        return replace(
            ranked,
            hits=arranged.hits,
            scores=arranged.scores,
            searched=ranked.hits.rows if ranked.searched is None else ranked.searched,
            rules=arranged.rules,
            unruled=arranged.unruled,
        )

    def hits(
        self,
        vectors: Float32Rows,
        depth: int,
        effort: str,
        label_filter: LabelFilter | None,
        hidden: NDArray[np.int64] | None,
        moves: Moves | None = None,
    ) -> tuple[Hits, FilterPlan | None, Hits]:
        """Search the index under the filter and the label rules; at depth 0 the hits are empty.

        `hidden` are rows that a filtered answer leaves out. The plan is None without a filter: an
        answer does not report label rules. The hits behind it are the first labels of all, as
        many as re-ranking and calibration read. They know no filter, so no filter changes a score.
        """
        if depth == 0:
            none = no_hits(len(vectors))
            return none, None, none
        snapshot = self.snapshot
        index = self.index if snapshot is None else snapshot
        narrows = self.rules is not None and self.rules.narrows
        rule_rows = self.rules.rows(snapshot) if self.rules is not None and narrows else None
        if label_filter is None:
            if rule_rows is None:
                hits = index.search(vectors, depth, effort)
                moved = hits
                if moves is not None:
                    moved = moves.with_pinned(hits, index, vectors, None)
                return moved, None, hits
            hits, _ = search_filtered(index, vectors, depth, effort, rule_rows)
            if moves is not None:
                hits = moves.with_pinned(hits, index, vectors, rule_rows)
            return hits, None, self._head(index, vectors, effort)
        rows = resolve_filter(label_filter, self.catalogue)
        if hidden is not None:
            rows = rows.without(hidden)
        is_live = snapshot.lives if snapshot else lambda rows: rows < self.index.n_rows
        rows = rows.restrict_to_live(is_live)
        if rule_rows is not None:
            rows = rows.within(rule_rows)
        hits, plan = search_filtered(index, vectors, depth, effort, rows)
        if moves is not None:
            hits = moves.with_pinned(hits, index, vectors, rows)
        return hits, plan, self._head(index, vectors, effort)

    def _head(self, index: Searchable, vectors: Float32Rows, effort: str) -> Hits:
        depth = self.head_depth(effort)
        return index.search(vectors, depth, effort) if depth else no_hits(len(vectors))

    def rerank_depth(self, effort: str) -> int:
        """The candidates that this effort re-ranks; 0 if it re-ranks none."""
        return 0 if self.reranker is None else self.reranker.depths.get(effort, 0)

    def head_depth(self, effort: str) -> int:
        """The first labels of all that re-ranking and calibration read at this effort."""
        depth = self.rerank_depth(effort)
        if self.reranker is None or not depth:
            return self.calibration.depth
        return max(depth, self.reranker.calibration.depth)

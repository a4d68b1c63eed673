"""CatalogueState: a bundle with all changes so far, on the writer's side.

Only one thread at a time may use it. The live labels depend only on the newest change to each
label, so all processes agree on them:

- a label whose text equals that of the bundle keeps its row and its trained vector; its metadata
  may be new;
- any other live label has a row in the delta, and the bundle's row of the same id is a tombstone.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import orjson
from numpy.typing import NDArray

from service.core.catalogue.changes import StoredChange
from service.core.catalogue.delta import DeltaRows
from service.core.catalogue.fields import GrowingFieldIndex
from service.core.catalogue.placement import Placement
from service.core.catalogue.snapshot import Snapshot
from service.core.encoding.text import normalise
from service.core.index.protocol import LabelIndex
from service.core.labels.label_directory import LabelDirectory
from service.core.labels.labels import Label, LabelStore

Vectors = Mapping[int, NDArray[np.float32]]


class CatalogueState:
    """The writer's state. `rows` maps every changed id to its row, None if no label is live."""

    def __init__(self, base: LabelIndex, labels: LabelStore, directory: LabelDirectory) -> None:
        self.rows: dict[str, int | None] = {}
        self.fields = GrowingFieldIndex()
        self._base = base
        self._n_base = base.n_rows
        self._labels = labels
        self._directory = directory
        self._delta = DeltaRows(base.dim, base.n_rows)
        self._added: list[Label] = []
        self._tombstones: set[int] = set()
        self._overrides: dict[int, Label] = {}

    def needs_vector(self, label: Label) -> bool:
        """Whether a label's text is new: neither the bundle nor the delta has it under its id."""
        own_row = self._directory.row_of(label.label_id)
        if own_row is not None and same_text(self._labels[own_row], label):
            return False
        row = self.rows.get(label.label_id)
        return row is None or row < self._n_base or not same_text(self._of_delta(row), label)

    def take_over(
        self, changes: Sequence[StoredChange], embeddings: Vectors, placement: Placement | None
    ) -> None:
        """Apply stored changes, at most one for each label.

        `embeddings` maps a change's seq to the embedding (dim,) of a text that needs a vector. If
        it is empty, `placement` may be None.
        """
        fresh: list[tuple[Label, NDArray[np.float32]]] = []
        for change in changes:
            label, own_row = change.label, self._directory.row_of(change.label_id)
            row = self.rows.get(change.label_id, own_row)
            if (
                label is not None
                and own_row is not None
                and same_text(self._labels[own_row], label)
            ):
                if row != own_row:
                    self._remove_row(row)
                self._restore(own_row, label)
                continue
            if label is not None:
                fresh.append((label, self._vector(change.seq, row, embeddings, placement)))
            self._remove_row(row)
            self.rows[change.label_id] = None
            if own_row is not None:
                self._overrides.pop(own_row, None)
        self._append(fresh)

    def snapshot(self, placement: Placement | None) -> Snapshot:
        """The present state for readers."""
        return Snapshot(
            base=self._base,
            labels=self._labels,
            n_base=self._n_base,
            tombstones=np.array(sorted(self._tombstones), np.int64),
            overrides=dict(self._overrides),
            added=self._added,
            delta=self._delta.view(placement.to_score if placement is not None else None),
        )

    def _of_delta(self, row: int) -> Label:
        return self._added[row - self._n_base]

    def _vector(
        self, seq: int, row: int | None, embeddings: Vectors, placement: Placement | None
    ) -> NDArray[np.float32]:
        """The vector of a changed label: a new one for a new text, else the one it had."""
        if seq in embeddings:
            assert placement is not None
            return embeddings[seq] * np.float32(placement.scale)
        assert row is not None
        return self._delta.vector(row)

    def _remove_row(self, row: int | None) -> None:
        """Leave a label's row out of later snapshots."""
        if row is None:
            return
        if row >= self._n_base:
            self._delta.kill(row)
        else:
            self._tombstones.add(row)

    def _restore(self, row: int, label: Label) -> None:
        """Make a row of the bundle live, with the metadata of `label`."""
        self._tombstones.discard(row)
        self.rows[label.label_id] = row
        if _same_to_the_letter(label, self._labels[row]):
            self._overrides.pop(row, None)
        else:
            self._overrides[row] = label
            self.fields.add(row, label)

    def _append(self, fresh: Sequence[tuple[Label, NDArray[np.float32]]]) -> None:
        if not fresh:
            return
        # Labels before vectors, so that a reader who sees a row always finds its label.
        self._added.extend(label for label, _ in fresh)
        vectors = np.empty((len(fresh), len(fresh[0][1])), np.float32)
        for place, (_, vector) in enumerate(fresh):
            vectors[place] = vector  # `np.stack` lets no other thread run until all are copied
        first = self._delta.append(vectors)
        for row, (label, _) in enumerate(fresh, first):
            self.fields.add(row, label)
            self.rows[label.label_id] = row


def _same_to_the_letter(one: Label, other: Label) -> bool:
    """Whether text and metadata are identical; `==` would not tell 1 from true."""
    return one.text == other.text and (
        orjson.dumps(one.metadata, option=orjson.OPT_SORT_KEYS)
        == orjson.dumps(other.metadata, option=orjson.OPT_SORT_KEYS)
    )


def same_text(one: Label, other: Label) -> bool:
    """Whether two labels' texts are equal after cleaning, so that they encode alike."""
    return one.text == other.text or normalise(one.text) == normalise(other.text)

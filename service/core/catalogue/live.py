"""The catalogue as it is now: a bundle's labels with the changes since it was sealed.

`search` and `label` read one snapshot and never wait. `apply` and `poll` publish the next one and
are for a thread of their own: they encode texts and write to disk. Without a change, `search` is
the bundle's own index behind one test of an attribute.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.bundle.manifest import EXACT, Manifest
from service.core.catalogue.changes import Applied, Change, StoredChange
from service.core.catalogue.fields import Conditions, FieldIndex
from service.core.catalogue.placement import Embed, Placement, placement_of
from service.core.catalogue.snapshot import Snapshot
from service.core.catalogue.state import CatalogueState, Vectors
from service.core.catalogue.store import ChangeStore
from service.core.encoding.embedding import embed_texts
from service.core.encoding.encoder import Encoder
from service.core.encoding.tokenizer import Tokenizer
from service.core.index.protocol import LabelIndex
from service.core.labels.label_directory import LabelDirectory
from service.core.labels.labels import Label, LabelStore
from service.core.types import Float32Rows, Hits
from service.errors import CatalogueUnavailable

NO_STORE: Final = (
    "changes to the catalogue cannot be kept: set ASTROLABE_STATE_DIR to a folder on a disk that "
    "outlives the service, and start it again"
)


class LiveCatalogue:
    """Searches and changes one bundle's labels. Safe to call from many threads at once."""

    def __init__(
        self,
        base: LabelIndex,
        labels: LabelStore,
        directory: Callable[[], LabelDirectory],
        embed: Embed,
        place: Callable[[], Placement],
        *,
        store: ChangeStore | None = None,
        encoder_key: str = "",
        folded_seq: int = 0,
    ) -> None:
        """Takes over the changes that the store holds; raises CatalogueError.

        `directory` and `place` are asked once, at first need. `encoder_key` names what `embed` is,
        for embeddings that are kept; `folded_seq` is the last change folded into the bundle.
        """
        self.kind = base.kind
        self.dim = base.dim
        self._base = base
        self._labels = labels
        self._open_directory = directory
        self._embed = embed
        self._place = place
        self._store = store
        self._encoder_key = encoder_key
        self._folded_seq = self._seq = folded_seq
        self._writing = threading.Lock()
        self._behind = self._closed = False
        self._snapshot: Snapshot | None = None
        if store is not None:
            self._catch_up(store, {})

    @classmethod
    def of(
        cls,
        folder: Path,
        manifest: Manifest,
        index: LabelIndex,
        labels: LabelStore,
        tokenizer: Tokenizer,
        encoder: Encoder,
        *,
        variant: str,
        max_batch_tokens: int,
        store: ChangeStore | None = None,
    ) -> "LiveCatalogue":
        """Over the open parts of a bundle; raises CatalogueError, BundleMismatch."""
        embed = partial(_embed, tokenizer, encoder, max_batch_tokens)
        folded = manifest.folded
        return cls(
            index,
            labels,
            partial(LabelDirectory.open, folder, labels),
            embed,
            lambda: measure_placement(manifest, index, labels, embed),
            store=store,
            encoder_key=_encoder_key(manifest, variant),
            folded_seq=folded.seq if folded is not None else 0,
        )

    @property
    def n_rows(self) -> int:
        """Live labels."""
        snapshot = self._snapshot
        return self._base.n_rows if snapshot is None else snapshot.n_live

    @property
    def n_base(self) -> int:
        """The bundle's own labels."""
        return self._base.n_rows

    @property
    def n_delta(self) -> int:
        """Live labels that are compared one by one: what a fold would put into the index."""
        snapshot = self._snapshot
        return 0 if snapshot is None else snapshot.delta.n_alive

    @property
    def n_tombstones(self) -> int:
        """Rows of the bundle that no longer count."""
        snapshot = self._snapshot
        return 0 if snapshot is None else len(snapshot.tombstones)

    @property
    def seq(self) -> int:
        """The last change that searches see."""
        return self._seq

    @property
    def snapshot(self) -> Snapshot | None:
        """The state that a search of now sees; None where it is the bundle's own."""
        return self._snapshot

    def search(self, queries: Float32Rows, k: int, effort: str) -> Hits:
        """Top k live rows of each query (n, dim). Raises ValueError, KeyError."""
        snapshot = self._snapshot
        if snapshot is None:
            return self._base.search(queries, k, effort)
        return snapshot.search(queries, k, effort)

    def label(self, row: int) -> Label:
        """The label of a row that a search gave, also where it has been removed since."""
        snapshot = self._snapshot
        return self._labels[row] if snapshot is None else snapshot.label(row)

    def row_of(self, label_id: str) -> int | None:
        """The row of a live label, None if there is none of this id."""
        if self._snapshot is not None and label_id in self._state.rows:
            return self._state.rows[label_id]
        return self.directory.row_of(label_id)

    def knows(self, label_id: str) -> bool:
        """Whether a label has this id, or had it before a change removed it."""
        known = self._snapshot is not None and label_id in self._state.rows
        return known or self.directory.row_of(label_id) is not None

    def rows_of(self, label_ids: Iterable[str]) -> tuple[NDArray[np.int64], list[str]]:
        """Rows of live labels, rising and each once; and the ids that none has."""
        found = {label_id: self.row_of(label_id) for label_id in label_ids}
        rows = sorted({row for row in found.values() if row is not None})
        unknown = [label_id for label_id, row in found.items() if row is None]
        return np.array(rows, np.int64), unknown

    def rows_where(self, conditions: Conditions) -> NDArray[np.int64]:
        """Rows of live labels whose metadata meets every condition, rising.

        A field meets a condition by any of its values. Raises ValueError where there is none.
        """
        snapshot = self._snapshot
        rows = self.fields.rows_where(conditions)
        if snapshot is None:
            return rows
        of_base = snapshot.lives(rows) & ~np.isin(rows, list(snapshot.overrides))
        changed = [
            row
            for row, label in self._state.fields.entries_where(conditions)
            if row >= snapshot.n_base or snapshot.overrides.get(row) is label
        ]
        others = np.array(changed, np.int64)
        return np.union1d(rows[of_base], others[snapshot.lives(others)])

    @cached_property
    def directory(self) -> LabelDirectory:
        """Id to row, of the bundle's own labels."""
        return self._open_directory()

    @cached_property
    def fields(self) -> FieldIndex:
        """The metadata of the bundle's own labels: one pass over all of them, at first need."""
        return FieldIndex(self._labels.scan_metadata())

    def apply(self, changes: Sequence[Change]) -> Applied:
        """Keep the changes, all or none, and show them to every later search.

        Blocking: texts are encoded before anything is written. Raises LabelExists, LabelUnknown,
        InvalidValue, CatalogueUnavailable, CatalogueCorrupt.
        """
        store = self._store
        if store is None:
            raise CatalogueUnavailable(NO_STORE)
        with self._writing:
            self._catch_up(store, {})
            base, after = self._base_label, self._folded_seq
            resolved = store.resolve(changes, base, after)
            embeddings = self._encode(dict(enumerate(resolved)))
            stored = store.append(changes, base, after, self._encoder_key, embeddings)
            self._catch_up(store, {stored[place].seq: row for place, row in embeddings.items()})
            made = [change.op for change in stored]
        return Applied(
            self._seq, made.count("add"), made.count("update"), made.count("remove"), self.n_rows
        )

    def poll(self) -> bool:
        """Take over what other processes changed; whether there was anything. Cheap if not."""
        store = self._store
        if store is None or self._closed or not (store.changed() or self._behind):
            return False
        with self._writing:
            return self._catch_up(store, {})

    def close(self) -> None:
        """Let go of the file of changes; searching goes on, and nothing new is polled for."""
        self._closed = True
        if self._store is not None:
            self._store.close()

    def _base_label(self, label_id: str) -> Label | None:
        row = self.directory.row_of(label_id)
        return None if row is None else self._labels[row]

    def _encode(self, labels: Mapping[int, Label | None]) -> dict[int, NDArray[np.float32]]:
        """Embeddings of the labels whose text has none yet, by their key."""
        texts = {
            key: label.text
            for key, label in labels.items()
            if label is not None and self._state.needs_vector(label)
        }
        return dict(zip(texts, self._embed(list(texts.values())), strict=True)) if texts else {}

    def _catch_up(self, store: ChangeStore, own: Vectors) -> bool:
        """Publish all changes behind the last; `own` are embeddings that are known, by seq."""
        self._behind = True  # until all went well
        changes = store.since(self._seq)
        if changes:
            self._take_over(store, changes, own)
        self._behind = False
        return bool(changes)

    def _take_over(self, store: ChangeStore, changes: Sequence[StoredChange], own: Vectors) -> None:
        newest: dict[str, StoredChange] = {}
        for change in changes:
            newest.pop(change.label_id, None)  # so that rows come in the order of these
            newest[change.label_id] = change
        known = dict(own)
        if any(change.label and change.seq not in known for change in newest.values()):
            known |= store.vectors(self._encoder_key, self._seq)
        missing = {each.seq: each.label for each in newest.values() if each.seq not in known}
        if encoded := self._encode(missing):
            store.keep_vectors(self._encoder_key, encoded)
            known |= encoded
        added = any(change.label for change in newest.values()) and bool(known)
        placement = self._placement if added or self.n_delta else None
        self._state.take_over(list(newest.values()), known, placement)
        self._snapshot = self._state.snapshot(placement)
        self._seq = changes[-1].seq

    @cached_property
    def _state(self) -> CatalogueState:
        return CatalogueState(self._base, self._labels, self.directory)

    @cached_property
    def _placement(self) -> Placement:
        return self._place()


def measure_placement(
    manifest: Manifest, index: LabelIndex, labels: LabelStore, embed: Embed
) -> Placement:
    """How added labels score in a bundle: as they do in the one that it was folded from."""
    efforts = [point.name for point in manifest.operating_points]
    effort = EXACT if EXACT in efforts else manifest.defaults.effort
    scale = manifest.folded.scale if manifest.folded is not None else None
    return placement_of(index, manifest.index.metric, labels, embed, effort, scale)


def _encoder_key(manifest: Manifest, variant: str) -> str:
    """Names what makes an embedding of a text: bundles with the same encoder share them."""
    encoder = manifest.files[manifest.encoder.variants[variant]].sha256
    tokenizer = manifest.files[manifest.tokenizer.file].sha256
    return f"{encoder[:32]}:{tokenizer[:32]}:{manifest.tokenizer.max_tokens}"


def _embed(
    tokenizer: Tokenizer, encoder: Encoder, max_batch_tokens: int, texts: Sequence[str]
) -> Float32Rows:
    return embed_texts(tokenizer, encoder, texts, max_batch_tokens)

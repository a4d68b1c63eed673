"""The live catalogue: a bundle's labels with all changes since it was sealed.

`search` and `label` read one snapshot and never block. `apply` and `poll` publish the next
snapshot; they encode texts and write to disk, so call them on a separate thread. While there is no
change, `search` costs one attribute test more than the bundle's own index.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
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
from service.core.encoding.field_tokenizer import AnyTokenizer
from service.core.index.protocol import LabelIndex
from service.core.labels.label_directory import LabelDirectory
from service.core.labels.labels import Label, LabelStore
from service.core.types import Float32Rows, Hits
from service.errors import CatalogueUnavailable, InvalidValue

log = logging.getLogger(__name__)

NO_STORE: Final = (
    "changes to the catalogue cannot be kept: set ASTROLABE_STATE_DIR to a folder on a disk that "
    "outlives the service, or ASTROLABE_CATALOGUE_URL to a database, and start it again"
)


ENCODED_AT_ONCE: Final = 256
"""Texts between two looks at the deadline: some tenths of a second of encoding. A choice."""


class LiveCatalogue:
    """Searches and changes one bundle's labels. Many threads may call it at once."""

    def __init__(
        self,
        base: LabelIndex,
        labels: LabelStore,
        directory: LabelDirectory,
        embed: Embed,
        tokenless: Callable[[Sequence[str]], list[int]],
        place: Callable[[], Placement],
        *,
        store: ChangeStore | None = None,
        encoder_key: str = "",
        folded_seq: int = 0,
    ) -> None:
        """Load the changes in `store`; raises CatalogueError.

        `directory` finds the bundle's own labels by id. `tokenless` gives the positions of texts
        that leave no token, which no new label may have. `place` is called once, at first need.
        `encoder_key` identifies the encoder behind `embed`, under which the store keeps embeddings.
        `folded_seq` is the last change that is folded into the bundle.
        """
        self.kind = base.kind
        self.dim = base.dim
        self._base = base
        self._labels = labels
        self.directory = directory
        self._embed = embed
        self._tokenless = tokenless
        self._place = place
        self._store = store
        self._encoder_key = encoder_key
        self._folded_seq = self._seq = folded_seq
        self._writing = threading.Lock()
        self._history: str | None = None
        self._behind = self._closed = False
        self._snapshot: Snapshot | None = None
        if store is not None:
            self._catch_up(store, {})

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        index: LabelIndex,
        labels: LabelStore,
        directory: LabelDirectory,
        tokenizer: AnyTokenizer,
        encoder: Encoder,
        *,
        variant: str,
        max_batch_tokens: int,
        store: ChangeStore | None = None,
    ) -> "LiveCatalogue":
        """The catalogue of a bundle whose parts are open.

        `tokenizer` is the bundle's with any prefix; the texts of labels get their own. Raises
        CatalogueError, BundleMismatch, ManifestInvalid.
        """
        tokenizer = tokenizer.with_prefix(manifest.tokenizer.label_prefix)
        embed = partial(_embed, tokenizer, encoder, max_batch_tokens)
        folded = manifest.folded
        return cls(
            index,
            labels,
            directory,
            embed,
            tokenizer.without_tokens,
            lambda: measure_placement(manifest, index, labels, embed),
            store=store,
            encoder_key=_encoder_key(manifest, variant),
            folded_seq=folded.seq if folded is not None else 0,
        )

    @property
    def n_rows(self) -> int:
        """Number of live labels."""
        snapshot = self._snapshot
        return self._base.n_rows if snapshot is None else snapshot.n_live

    @property
    def n_base(self) -> int:
        """Number of labels in the bundle."""
        return self._base.n_rows

    @property
    def n_delta(self) -> int:
        """Number of live labels in the delta, which a fold would put into the index."""
        snapshot = self._snapshot
        return 0 if snapshot is None else snapshot.delta.n_alive

    @property
    def n_tombstones(self) -> int:
        """Number of the bundle's rows that are tombstones."""
        snapshot = self._snapshot
        return 0 if snapshot is None else len(snapshot.tombstones)

    @property
    def seq(self) -> int:
        """Number of the last change that searches see."""
        return self._seq

    @property
    def snapshot(self) -> Snapshot | None:
        """The state that a search sees now; None means the bundle's own state."""
        return self._snapshot

    def search(self, queries: Float32Rows, k: int, effort: str) -> Hits:
        """Top k live rows of each query (n, dim), as LabelIndex.search.

        Raises ValueError for queries that no index can answer, KeyError for an unknown effort.
        """
        snapshot = self._snapshot
        if snapshot is None:
            return self._base.search(queries, k, effort)
        return snapshot.search(queries, k, effort)

    def label(self, row: int) -> Label:
        """The label of a row from a search, even if it has been removed since."""
        snapshot = self._snapshot
        return self._labels[row] if snapshot is None else snapshot.label(row)

    def row_of(self, label_id: str) -> int | None:
        """The row of the live label with this id, or None."""
        if self._snapshot is not None and label_id in self._state.rows:
            return self._state.rows[label_id]
        return self.directory.row_of(label_id)

    def knows(self, label_id: str) -> bool:
        """Whether a label has this id, or had it before a change removed it."""
        in_changes = self._snapshot is not None and label_id in self._state.rows
        return in_changes or self.directory.row_of(label_id) is not None

    def rows_of(self, label_ids: Iterable[str]) -> tuple[NDArray[np.int64], list[str]]:
        """Rows of the live labels with these ids, rising, each once; and the unknown ids."""
        row_by_id = {label_id: self.row_of(label_id) for label_id in label_ids}
        rows = sorted({row for row in row_by_id.values() if row is not None})
        unknown_ids = [label_id for label_id, row in row_by_id.items() if row is None]
        return np.array(rows, np.int64), unknown_ids

    def rows_where(self, conditions: Conditions) -> NDArray[np.int64]:
        """Rows of live labels whose metadata meets every condition, rising.

        One of a field's values is enough. Raises ValueError if there is no condition.
        """
        snapshot = self._snapshot
        rows = self.fields.rows_where(conditions)
        if snapshot is None:
            return rows
        of_base = snapshot.lives(rows) & ~np.isin(rows, list(snapshot.overrides))
        changed_rows = [
            row
            for row, label in self._state.fields.entries_where(conditions)
            if row >= snapshot.n_base or snapshot.overrides.get(row) is label
        ]
        candidates = np.array(changed_rows, np.int64)
        return np.union1d(rows[of_base], candidates[snapshot.lives(candidates)])

    @cached_property
    def fields(self) -> FieldIndex:
        """Index of the metadata of the bundle's own labels; the first use reads all of them."""
        return FieldIndex(self._labels.scan_metadata())

    def apply(self, changes: Sequence[Change], check: Callable[[], None] = lambda: None) -> Applied:
        """Store the changes, all or none; every later search sees them.

        It blocks while it encodes the new texts and then writes. It calls `check` again and again
        until it writes; what that raises ends the call, and nothing has changed. Raises
        LabelExists, LabelUnknown, InvalidValue, PayloadTooLarge, CatalogueUnavailable,
        CatalogueCorrupt.
        """
        store = self._store
        if store is None:
            raise CatalogueUnavailable(NO_STORE)
        with self._writing:
            check()
            self._catch_up(store, {})
            base, after = self._base_label, self._folded_seq
            labels = store.resolve(changes, base, after)
            self._check_tokens(labels)
            embeddings = self._encode(dict(enumerate(labels)), check)
            stored = store.append(changes, base, after, self._encoder_key, embeddings)
            self._catch_up(store, {stored[place].seq: row for place, row in embeddings.items()})
            ops = [change.op for change in stored]
        return Applied(
            self._seq, ops.count("add"), ops.count("update"), ops.count("remove"), self.n_rows
        )

    def poll(self) -> bool:
        """Load changes that other processes stored; returns whether there were any.

        Without a change it takes a few microseconds. Raises CatalogueError.
        """
        store = self._store
        if store is None or self._closed or not (store.changed() or self._behind):
            return False
        with self._writing:
            return self._catch_up(store, {})

    def close(self) -> None:
        """Close the file of changes, after the change that is being made.

        Searches go on; `poll` finds nothing any more.
        """
        self._closed = True
        if self._store is not None:
            with self._writing:
                self._store.close()

    def _base_label(self, label_id: str) -> Label | None:
        row = self.directory.row_of(label_id)
        return None if row is None else self._labels[row]

    def _check_tokens(self, labels: Sequence[Label | None]) -> None:
        """Raise InvalidValue if a text that needs a vector leaves no token."""
        texts = self._new_texts(dict(enumerate(labels)))
        for position in self._tokenless(list(texts.values())):
            where = f"changes[{list(texts)[position]}].text"
            raise InvalidValue(f"{where} holds no visible character: give a text")

    def _new_texts(self, labels: Mapping[int, Label | None]) -> dict[int, str]:
        """The texts of the labels that need a vector, by key."""
        return {
            key: label.text
            for key, label in labels.items()
            if label is not None and self._state.needs_vector(label)
        }

    def _encode(
        self, labels: Mapping[int, Label | None], check: Callable[[], None] = lambda: None
    ) -> dict[int, NDArray[np.float32]]:
        """Encode the texts of the labels that need a vector; returns embeddings by key.

        Calls `check` before each part.
        """
        embeddings: dict[int, NDArray[np.float32]] = {}
        rest = iter(self._new_texts(labels).items())
        while part := dict(islice(rest, ENCODED_AT_ONCE)):
            check()
            embeddings |= zip(part, self._embed(list(part.values())), strict=True)
        return embeddings

    def _catch_up(self, store: ChangeStore, own: Vectors) -> bool:
        """Publish all changes after the last seen one; `own` has embeddings by seq."""
        self._behind = True  # stays set if anything below raises, so that `poll` tries again
        history, last_seq = store.history()
        went_back = self._history not in (None, history) or last_seq < self._seq
        changes = self._since_restore(store, last_seq) if went_back else store.since(self._seq)
        if changes:
            self._take_over(store, changes, own)
        if went_back:
            self._seq = last_seq
        self._history = history
        self._behind = False
        return bool(changes)

    def _since_restore(self, store: ChangeStore, last_seq: int) -> list[StoredChange]:
        """What turns the present state into that of a store which was restored from a backup.

        Labels that only the lost changes added are removed, and others get what the store or the
        bundle says of them.
        """
        log.error(
            "the catalogue's history is another one, or ends earlier: it was restored, and changes "
            "that had been acknowledged are gone",
            extra={"fields": {"had": self._seq, "has": last_seq, "store": store.place}},
        )
        kept = store.since(self._folded_seq)
        ids = {change.label_id for change in kept}
        lost = [label_id for label_id in self._state.rows if label_id not in ids]
        undone = []
        for label_id in lost:
            label = self._base_label(label_id)
            undone.append(StoredChange(0, "update" if label else "remove", label_id, label))
        return undone + kept

    def _take_over(self, store: ChangeStore, changes: Sequence[StoredChange], own: Vectors) -> None:
        newest: dict[str, StoredChange] = {}
        for change in changes:
            newest.pop(change.label_id, None)  # move it to the end: rows follow this order
            newest[change.label_id] = change
        embeddings = dict(own)
        if any(change.label and change.seq not in embeddings for change in newest.values()):
            embeddings |= store.vectors(self._encoder_key, self._seq)
        missing = {each.seq: each.label for each in newest.values() if each.seq not in embeddings}
        if fresh := self._encode(missing):
            store.save_vectors(self._encoder_key, fresh)
            embeddings |= fresh
        has_vectors = any(change.label for change in newest.values()) and bool(embeddings)
        placement = self._placement if has_vectors or self.n_delta else None
        self._state.take_over(list(newest.values()), embeddings, placement)
        self._snapshot = self._state.snapshot(placement)
        self._seq = max(self._seq, changes[-1].seq)

    @cached_property
    def _state(self) -> CatalogueState:
        return CatalogueState(self._base, self._labels, self.directory)

    @cached_property
    def _placement(self) -> Placement:
        return self._place()


def measure_placement(
    manifest: Manifest, index: LabelIndex, labels: LabelStore, embed: Embed
) -> Placement:
    """How added labels score in a bundle. A folded bundle keeps the scale of its base."""
    efforts = [point.name for point in manifest.operating_points]
    effort = EXACT if EXACT in efforts else manifest.defaults.effort
    scale = manifest.folded.scale if manifest.folded is not None else None
    return placement_of(index, manifest.index.metric, labels, embed, effort, scale)


def _encoder_key(manifest: Manifest, variant: str) -> str:
    """Identifies what makes a label's embedding; bundles with the same key share embeddings."""
    encoder = manifest.files[manifest.encoder.variants[variant]].sha256
    tokenizer = manifest.files[manifest.tokenizer.file].sha256
    key = f"{encoder[:32]}:{tokenizer[:32]}:{manifest.tokenizer.max_tokens}"
    prefix = manifest.tokenizer.label_prefix
    return f"{key}:{prefix}" if prefix else key


def _embed(
    tokenizer: AnyTokenizer, encoder: Encoder, max_batch_tokens: int, texts: Sequence[str]
) -> Float32Rows:
    return embed_texts(tokenizer, encoder, texts, max_batch_tokens)

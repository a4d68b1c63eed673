"""ChangeStore: what a store of a catalogue's changes does, whichever database keeps them.

Each call is one transaction. It stores all of its changes or none, and it reaches the disk before
the call returns, so a killed process loses nothing that it acknowledged. The store checks the rules
inside the transaction, while no other process can write. Changes belong to a catalogue (a bundle's
name): a newer bundle of that name takes over the changes that are not folded into it. The store
also holds the embeddings of changed texts by encoder, so a restart need not encode them again.

`SqliteStore` is a file that the processes of one machine share, `PostgresStore` a database that
many machines share.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from service.core.catalogue.changes import Change, LabelOf, StoredChange
from service.core.labels.labels import Label
from service.errors import CatalogueCorrupt

Vectors = Mapping[int, NDArray[np.float32]]

RESTORE: Final = "stop the service and restore it from a backup, as docs/catalogue.md says"


class ChangeStore(Protocol):
    """An open store. Threads may share it, and so may forked processes.

    Unless it says otherwise every method raises CatalogueUnavailable, CatalogueCorrupt.
    """

    @property
    def place(self) -> str:
        """Where the changes lie, for sentences: a path, or a URL without its password."""
        ...

    def append(
        self,
        changes: Sequence[Change],
        base: LabelOf,
        after: int,
        encoder: str = "",
        vectors: Vectors | None = None,
    ) -> list[StoredChange]:
        """Store all changes or none; they are on disk when it returns.

        `base` finds the bundle's own labels, and `after` is the last change folded into them.
        `vectors` maps places in `changes` to the embeddings (dim,) of their texts by `encoder`.
        Raises LabelExists, LabelUnknown, InvalidValue, CatalogueUnavailable, CatalogueCorrupt.
        """
        ...

    def resolve(self, changes: Sequence[Change], base: LabelOf, after: int) -> list[Label | None]:
        """The label after each change, as `append` would store it now; raises what it raises."""
        ...

    def since(self, seq: int) -> list[StoredChange]:
        """All changes after `seq`, in order."""
        ...

    def vectors(self, encoder: str, after: int) -> dict[int, NDArray[np.float32]]:
        """The stored embeddings (dim,) by `encoder` of changes after `after`, by seq."""
        ...

    def save_vectors(self, encoder: str, vectors: Vectors) -> None:
        """Store embeddings by seq for the next start."""
        ...

    def changed(self) -> bool:
        """Whether another process has written since the last call; cheap enough to ask often."""
        ...

    def history(self) -> tuple[str, int]:
        """Which history of changes this is, and its last change.

        Where a database was restored from a backup, its history is another one or ends earlier.
        """
        ...

    def mark_folded(self, bundle_id: str, seq: int) -> None:
        """Record that a bundle holds the changes up to `seq`, and delete their embeddings.

        The changes themselves stay, because a newly trained bundle does not hold them.
        """
        ...

    def folds(self) -> dict[str, int]:
        """The bundle id of every fold, and the last change in it."""
        ...

    def close(self) -> None:
        """Close the store for good; every later call raises CatalogueUnavailable."""
        ...


def as_row(change: StoredChange) -> tuple[Any, ...]:
    """A change as the columns seq, label_id, op, text and metadata (JSON in bytes)."""
    label = change.label
    text, metadata = (label.text, orjson.dumps(label.metadata)) if label else (None, None)
    return change.seq, change.label_id, change.op, text, metadata


def from_row(row: tuple[Any, ...]) -> StoredChange:
    """The change in these columns; raises CatalogueCorrupt where another program wrote them."""
    seq, label_id, op, text, metadata = row
    try:
        label = None if text is None else Label(label_id, text, orjson.loads(metadata))
    except ValueError as exc:
        raise CatalogueCorrupt(f"change {seq} of the catalogue: {exc}: {RESTORE}") from exc
    return StoredChange(seq, op, label_id, label)

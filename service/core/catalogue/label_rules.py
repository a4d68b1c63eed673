"""Label rules: the operator decides which labels answers may hold, whatever a request says.

A file holds the rules of each model. `RuledLabels` turns them into the allowed rows of one state of
a catalogue. The rules apply at once to a label that is added or changed while the service runs.
"""

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError, model_validator

from service.bundle.plain_files import read_object
from service.core.catalogue.fields import meets
from service.core.catalogue.live import LiveCatalogue
from service.core.catalogue.snapshot import Snapshot
from service.core.labels.filtered_search import RowFilter, are_open
from service.core.labels.item_filter import NO_ROWS
from service.core.labels.labels import Label
from service.core.types import FieldValue
from service.errors import BundleError, SettingsInvalid

MAX_NAMED: Final = 5
"""Most ids that an error message names: a file for another catalogue can have thousands."""

_Values = Annotated[tuple[FieldValue, ...], Field(min_length=1)]
_STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Selection(BaseModel):
    """Labels by id, and those whose metadata has one of the values in every field of `where`."""

    model_config = _STRICT

    ids: tuple[str, ...] = ()
    where: Mapping[str, FieldValue | _Values] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if not self.ids and not self.where:
            raise ValueError("names no label: give ids, where, or both")
        return self


class LabelRules(BaseModel):
    """Rules of one model: no answer holds labels of `exclude`; if `only` is set, no others."""

    model_config = _STRICT

    exclude: Selection | None = None
    only: Selection | None = None


class _RulesFile(RootModel[dict[str, LabelRules]]):
    """The rules file: maps a model's name to its rules."""


def read_label_rules(path: Path) -> dict[str, LabelRules]:
    """Read the rules of each model by its name.

    Raises SettingsInvalid, which names the file and the place in it.
    """
    try:
        # Follow links, because Kubernetes mounts the files of a ConfigMap as links.
        # (`Path.resolve` raises RuntimeError for a link to itself.)
        return _RulesFile.model_validate(read_object(Path(os.path.realpath(path)))).root
    except BundleError as exc:
        raise SettingsInvalid(f"label_rules: {exc.detail}") from exc
    except ValidationError as exc:
        fault = exc.errors(include_url=False)[0]
        place = ".".join(str(part) for part in fault["loc"][:4])
        raise SettingsInvalid(
            f'label_rules: {path}: {place}: {fault["msg"]}; write {{"MODEL": {{"exclude": '
            '{"ids": [...], "where": {"FIELD": [...]}}, "only": {...}}}'
        ) from exc


class RuledLabels:
    """The rules of one model, applied to its catalogue. Threads may share it."""

    def __init__(self, rules: LabelRules, catalogue: LiveCatalogue) -> None:
        """Look up every id; index all metadata first if a rule has conditions on it.

        Raises SettingsInvalid for an id that no label has or had, and if the rules allow no label.
        """
        self._catalogue = catalogue
        self._exclude = _selection_rows(rules.exclude, catalogue, "exclude")
        self._only = _selection_rows(rules.only, catalogue, "only")
        self._lock = threading.Lock()
        self._last: tuple[Snapshot | None, RowFilter] | None = None
        if self.n_open == 0:
            raise SettingsInvalid(
                "label_rules leave no label of this model open: widen `only`, or shorten `exclude`"
            )

    @property
    def n_open(self) -> int:
        """Number of labels that the rules allow now."""
        snapshot = self._catalogue.snapshot
        n_rows = self._catalogue.n_base if snapshot is None else snapshot.n_live
        rows = self.rows(snapshot)
        return n_rows - len(rows.denied) if rows.allowed is None else len(rows.allowed)

    def rows(self, snapshot: Snapshot | None) -> RowFilter:
        """The rules as rows of one state of the catalogue; all of them are live in it.

        `snapshot` is None for the bundle's own state.
        """
        last = self._last
        if last is not None and last[0] is snapshot:
            return last[1]
        with self._lock:
            denied = NO_ROWS if self._exclude is None else self._exclude.rows(snapshot)
            row_filter = RowFilter(None, denied)
            if self._only is not None:
                row_filter = RowFilter(self._only.rows(snapshot), NO_ROWS).without(denied)
            self._last = (snapshot, row_filter)
        return row_filter

    def are_open(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the rules allow each row (n,) now."""
        return are_open(rows, self.rows(self._catalogue.snapshot))


class _SelectionRows:
    """The rows of a selection.

    It looks up the bundle's labels once, through the catalogue, and compares every later label
    itself. It cannot ask the catalogue for those, because the catalogue may be a change ahead of
    the snapshot that a search holds.
    """

    def __init__(self, selection: Selection, catalogue: LiveCatalogue) -> None:
        self._ids = frozenset(selection.ids)
        self._where = selection.where
        own_rows = [catalogue.directory.row_of(label_id) for label_id in sorted(self._ids)]
        rows = np.array([row for row in own_rows if row is not None], np.int64)
        if self._where:
            rows = np.concatenate([rows, catalogue.fields.rows_where(self._where)])
        self._of_base = np.unique(rows)
        self._of_delta: list[int] = []
        self._n_seen = 0

    def rows(self, snapshot: Snapshot | None) -> NDArray[np.int64]:
        """The selection's live rows, rising. Only one thread at a time may call it."""
        if snapshot is None:
            return self._of_base
        added: Sequence[Label] = snapshot.added
        for place in range(self._n_seen, len(added)):  # an added row keeps its label for ever
            self._n_seen = place + 1
            if self._has(added[place]):
                self._of_delta.append(snapshot.n_base + place)
        overrides = snapshot.overrides
        unchanged_rows = self._of_base[~np.isin(self._of_base, list(overrides))]
        changed_rows = [row for row, label in overrides.items() if self._has(label)]
        rows = np.union1d(unchanged_rows, np.array([*changed_rows, *self._of_delta], np.int64))
        return rows[snapshot.lives(rows)]

    def _has(self, label: Label) -> bool:
        return label.label_id in self._ids or (
            bool(self._where) and meets(label.metadata, self._where)
        )


def _selection_rows(
    selection: Selection | None, catalogue: LiveCatalogue, name: str
) -> _SelectionRows | None:
    if selection is None:
        return None
    unknown_ids = [label_id for label_id in selection.ids if not catalogue.knows(label_id)]
    if unknown_ids:
        examples = ", ".join(repr(label_id[:80]) for label_id in unknown_ids[:MAX_NAMED])
        more = f" and {len(unknown_ids) - MAX_NAMED} more" if len(unknown_ids) > MAX_NAMED else ""
        raise SettingsInvalid(
            f"label_rules: {name}.ids: this model has no label {examples}{more}: correct the ids, "
            "or take them out of the file"
        )
    return _SelectionRows(selection, catalogue)

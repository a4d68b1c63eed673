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
from service.core.labels.moves import Moves
from service.core.types import FieldValue
from service.errors import BundleError, SettingsInvalid

MAX_NAMED: Final = 5
"""Most ids that an error message names: a file for another catalogue can have thousands."""

MAX_PINNED: Final = 50
"""Most labels that rules pin. A choice: each costs every answer one more label to score."""
MAX_BOOSTS: Final = 100
"""Most boosts of a model. A choice: each is looked up again at every change of a label."""
MOST_BOOST: Final = 20.0
"""A choice: in logits it takes the least probability that scores tell from 0 to one above 0.9."""

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


class Boost(Selection):
    """Labels whose score rises by `by`, or falls where that is below 0.

    It is added to the served score: to its logit where that is a probability.
    """

    by: float = Field(ge=-MOST_BOOST, le=MOST_BOOST)


class LabelRules(BaseModel):
    """Rules of one model: no answer holds labels of `exclude`; if `only` is set, no others.

    Of the others `boost` changes the score, `pin` puts some first, its ids in their order, and
    `bury` some last.
    """

    model_config = _STRICT

    exclude: Selection | None = None
    only: Selection | None = None
    boost: tuple[Boost, ...] = Field((), max_length=MAX_BOOSTS)
    pin: Selection | None = None
    bury: Selection | None = None


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
            '{"ids": [...], "where": {"FIELD": [...]}}, "only": {...}, '
            '"boost": [{"ids": [...], "by": 1.5}], "pin": {...}, "bury": {...}}}'
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
        self._boosts = [
            (_known_rows(boost, catalogue, f"boost.{number}"), boost.by)
            for number, boost in enumerate(rules.boost)
        ]
        self._bury = _selection_rows(rules.bury, catalogue, "bury")
        self._pins = _pins(rules.pin, catalogue)
        self._lock = threading.Lock()
        self._last: tuple[Snapshot | None, RowFilter] | None = None
        self._last_moves: tuple[Snapshot | None, Moves] | None = None
        self.narrows = self._exclude is not None or self._only is not None
        self.moves_labels = bool(self._boosts or self._bury or self._pins)
        pinned = self.moves(catalogue.snapshot)
        if pinned is not None and len(pinned.pinned) > MAX_PINNED:
            raise SettingsInvalid(
                f"label_rules: pin: it selects {len(pinned.pinned)} labels, the limit is "
                f"{MAX_PINNED}: pin fewer, or boost them"
            )
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

    def moves(self, snapshot: Snapshot | None) -> Moves | None:
        """What the rules do to the order of labels in one state; None if they move none."""
        if not self.moves_labels:
            return None
        last = self._last_moves
        if last is not None and last[0] is snapshot:
            return last[1]
        with self._lock:
            boosted = [(each.rows(snapshot), by) for each, by in self._boosts]
            rows, inverse = np.unique(
                np.concatenate([NO_ROWS, *(part for part, _ in boosted)]), return_inverse=True
            )
            gains = np.repeat([by for _, by in boosted], [len(part) for part, _ in boosted])
            pins = [each.rows(snapshot) for each in self._pins]
            pinned = np.concatenate([NO_ROWS, *pins])
            tiers = np.repeat(np.arange(len(pins)), [len(part) for part in pins])
            pinned, first = np.unique(pinned, return_index=True)
            order = np.argsort(first)
            moves = Moves(
                pinned[order],
                tiers[first[order]],
                NO_ROWS if self._bury is None else self._bury.rows(snapshot),
                rows,
                np.bincount(inverse, gains, len(rows)).astype(np.float64),
            )
            self._last_moves = (snapshot, moves)
        return moves

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


def _pins(selection: Selection | None, catalogue: LiveCatalogue) -> list[_SelectionRows]:
    """The rows of each pinned id, in their order, and then those of the conditions."""
    if selection is None:
        return []
    if len(selection.ids) > MAX_PINNED:
        raise SettingsInvalid(
            f"label_rules: pin.ids holds {len(selection.ids)} ids, the limit is {MAX_PINNED}: pin "
            "fewer, or boost them"
        )
    _known_rows(selection, catalogue, "pin")
    parts = [Selection(ids=(label_id,)) for label_id in dict.fromkeys(selection.ids)]
    if selection.where:
        parts.append(Selection(where=selection.where))
    return [_SelectionRows(part, catalogue) for part in parts]


def _selection_rows(
    selection: Selection | None, catalogue: LiveCatalogue, name: str
) -> _SelectionRows | None:
    return None if selection is None else _known_rows(selection, catalogue, name)


def _known_rows(selection: Selection, catalogue: LiveCatalogue, name: str) -> _SelectionRows:
    """The rows of a selection; raises SettingsInvalid for an id that no label has or had."""
    unknown_ids = [label_id for label_id in selection.ids if not catalogue.knows(label_id)]
    if unknown_ids:
        examples = ", ".join(repr(label_id[:80]) for label_id in unknown_ids[:MAX_NAMED])
        more = f" and {len(unknown_ids) - MAX_NAMED} more" if len(unknown_ids) > MAX_NAMED else ""
        raise SettingsInvalid(
            f"label_rules: {name}.ids: this model has no label {examples}{more}: correct the ids, "
            "or take them out of the file"
        )
    return _SelectionRows(selection, catalogue)

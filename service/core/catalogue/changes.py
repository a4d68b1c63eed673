"""What may be changed in a catalogue, and the rules that a change must keep.

A label is *live* where the bundle holds it, or a change added it, and no later change removed it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from service.core.encoding.text import normalise
from service.core.labels.labels import Label
from service.errors import InvalidValue, LabelExists, LabelUnknown

Op = Literal["add", "update", "remove"]
LabelOf = Callable[[str], Label | None]


@dataclass(frozen=True, slots=True)
class Change:
    """One change. An update leaves as it is what is None; a removal needs neither."""

    op: Op
    label_id: str
    text: str | None = None
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class StoredChange:
    """A change as it is kept: with the whole label that it leaves, None where it removes one.

    `seq` counts all changes of a catalogue from 1.
    """

    seq: int
    op: Op
    label_id: str
    label: Label | None


@dataclass(frozen=True, slots=True)
class Applied:
    """What one call changed; `seq` is that of its last change, all of them kept on disk."""

    seq: int
    n_added: int
    n_updated: int
    n_removed: int
    n_labels: int
    """Live labels afterwards."""


def resolve(changes: Sequence[Change], live: LabelOf) -> list[Label | None]:
    """The label that each change leaves, None for a removal; `live` gives those before the first.

    Raises LabelExists, LabelUnknown, InvalidValue, all naming the change's place.
    """
    left: dict[str, Label | None] = {}
    resolved = []
    for place, change in enumerate(changes):
        name = change.label_id
        before = left[name] if name in left else live(name)
        label = _resolve_one(f"changes[{place}]", change, before)
        left[name] = label
        resolved.append(label)
    return resolved


def _resolve_one(where: str, change: Change, before: Label | None) -> Label | None:
    name = change.label_id
    if change.op == "add":
        if before is not None:
            raise LabelExists(f"{where}: label {name!r} exists: update it, or choose another id")
        _check_text(f"{where}.label_id", name)
    elif before is None:
        raise LabelUnknown(f"{where}: no label {name!r} to {change.op}: add it, or check the id")
    if change.op == "remove":
        return None
    text = change.text if change.text is not None or before is None else before.text
    metadata = change.metadata if change.metadata is not None or before is None else before.metadata
    _check_text(f"{where}.text", text)
    label = Label(name, text or "", dict(metadata or {}))
    _check_metadata(f"{where}.metadata", label.metadata)
    return label


def _check_text(where: str, text: str | None) -> None:
    if text is None or not normalise(text):
        raise InvalidValue(f"{where} is blank: give a text")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise InvalidValue(f"{where} holds a lone surrogate: give text in Unicode") from exc


def _check_metadata(where: str, metadata: dict[str, Any]) -> None:
    try:
        orjson.dumps(metadata)
    except TypeError as exc:  # orjson's own error is one of these
        raise InvalidValue(f"{where} is no JSON object: {exc}") from exc

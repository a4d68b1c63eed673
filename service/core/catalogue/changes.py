"""The changes that a catalogue accepts, and the rules that they must follow.

A label is *live* if the bundle holds it or a change added it, and no later change removed it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from service.core.encoding.text import normalise
from service.core.labels.label_id import fault_of_id
from service.core.labels.labels import Label
from service.errors import InvalidValue, LabelExists, LabelUnknown, PayloadTooLarge

Op = Literal["add", "update", "remove"]
LabelOf = Callable[[str], Label | None]

MAX_METADATA_BYTES: Final = 64 << 10
"""Longest metadata of a label, as JSON. A choice: as much as the longest text. An index holds each
of its values."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change. An update keeps the text or metadata that is None; a removal needs neither."""

    op: Op
    label_id: str
    text: str | None = None
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class StoredChange:
    """A change in the store: with the whole label after it, None if it removes the label.

    `seq` numbers all changes of a catalogue from 1.
    """

    seq: int
    op: Op
    label_id: str
    label: Label | None


@dataclass(frozen=True, slots=True)
class Applied:
    """The result of one call: how many labels it changed, all of them on disk.

    `seq` is the last change that searches now reflect; it may be another caller's.
    """

    seq: int
    n_added: int
    n_updated: int
    n_removed: int
    n_labels: int
    """Live labels after the call."""


def resolve(changes: Sequence[Change], live: LabelOf) -> list[Label | None]:
    """The label after each change, None for a removal; `live` finds labels before the first one.

    Raises LabelExists, LabelUnknown, InvalidValue or PayloadTooLarge; the error names the change by
    its place.
    """
    current: dict[str, Label | None] = {}
    results = []
    for place, change in enumerate(changes):
        name = change.label_id
        before = current[name] if name in current else live(name)
        label = _resolve_one(f"changes[{place}]", change, before)
        current[name] = label
        results.append(label)
    return results


def _resolve_one(where: str, change: Change, before: Label | None) -> Label | None:
    name = change.label_id
    if change.op == "add":
        if before is not None:
            raise LabelExists(f"{where}: label {name!r} exists: update it, or choose another id")
        if (fault := fault_of_id(name)) is not None:
            raise InvalidValue(
                f"{where}.id is {name[:80]!r}, which has {fault}: its route could not name the "
                "label, so choose another id"
            )
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
        n_bytes = len(orjson.dumps(metadata))
    except TypeError as exc:  # orjson's own error is a TypeError
        raise InvalidValue(f"{where} is no JSON object: {exc}") from exc
    if n_bytes > MAX_METADATA_BYTES:
        raise PayloadTooLarge(
            f"{where} has {n_bytes} bytes, the limit is {MAX_METADATA_BYTES}: keep less there"
        )

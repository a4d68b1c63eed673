"""Events of the feedback folder (docs/learning-loop.md), with their texts, labels and weights."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.errors import DataError

KINDS: Final = ("shown", "clicked", "accepted", "rejected")
WEIGHTS: Final = {"shown": 0.0, "clicked": 0.5, "accepted": 1.0, "rejected": -1.0}
"""Choices: who accepts a label says that it is right, who clicks only that it may be, and one
rejection takes one acceptance back. To show a label says nothing about it."""

POWER: Final = 1.0
"""Exponent of the chance 1 / position**POWER that a user looks at a position (Joachims, Swaminathan
and Schnabel, WSDM 2017, whose experiments take 1)."""

CLIP: Final = 10.0
"""Largest inverse propensity. A choice: without a bound, one click far down outweighs all."""

LEAST_SHOWN: Final = 100
"""A choice: at fewer showings, a position's share of clicks is uncertain by a third or more."""

_EVENT_COLUMNS = ["time", "request_id", "query", "text", "label_id", "event", "value", "position"]
_SAME = ["request_id", "query", "text", "label_id", "event"]


@dataclass(frozen=True)
class Weighing:
    """How events become weights; `power` None estimates the positions' propensities."""

    weights: dict[str, float] = field(default_factory=lambda: dict(WEIGHTS))
    power: float | None = POWER
    clip: float = CLIP


def read_events(folder: Path, counts: dict[str, int]) -> pa.Table:
    """All events with a text, those sent twice for one answer once.

    Texts that an event lacks come from the log of answers. Puts numbers of events into `counts`.
    Raises DataError where the folder holds no events, or a file that is no log.
    """
    events = _read(folder, "events", _EVENT_COLUMNS)
    if events is None:
        raise DataError(folder, None, "events-*.parquet files of a service", "none")
    counts["events"] = len(events)
    answers = _read(folder, "answers", ["request_id", "query", "text"])
    if answers is not None:
        events = _with_texts(events, answers)
    has_text = pc.is_valid(events["text"])
    counts["events without a text"] = len(events) - pc.sum(has_text).as_py() if len(events) else 0
    events = events.filter(has_text)
    once = (
        events.filter(pc.is_valid(events["request_id"]))
        .group_by(_SAME)
        .aggregate([("time", "min"), ("value", "max"), ("position", "min")])
    )
    once = once.rename_columns(
        [name.removesuffix("_min").removesuffix("_max") for name in once.column_names]
    )
    alone = events.filter(pc.is_null(events["request_id"]))
    counts["events sent twice"] = len(events) - len(once) - len(alone)
    return pa.concat_tables([once.select(_EVENT_COLUMNS), alone.select(_EVENT_COLUMNS)])


def weigh(events: pa.Table, how: Weighing) -> pa.Array:
    """The weight of each event: its kind's or its own value, over the propensity of its position.

    A rejection counts against the label. Only clicks and acceptances have a propensity.
    """
    kind = pc.index_in(events["event"], value_set=pa.array(KINDS))
    own = pc.take(pa.array([how.weights[name] for name in KINDS]), kind)
    sign = pc.take(pa.array([1.0, 1.0, 1.0, -1.0]), kind)
    weight = pc.coalesce(pc.multiply(events["value"], sign), own)
    position = pc.cast(events["position"], pa.float64())
    inverse = _estimated(events) if how.power is None else pc.power(position, how.power)
    inverse = pc.min_element_wise(pc.coalesce(inverse, 1.0), how.clip)
    positive = pc.is_in(events["event"], value_set=pa.array(["clicked", "accepted"]))
    return pc.multiply(weight, pc.if_else(positive, inverse, 1.0))


def _estimated(events: pa.Table) -> Any:
    """The inverse propensity of each event's position: the first's share of clicks over its own.

    Null for a position with too few showings or no click. It takes labels for equally good at all
    positions. So it overstates what the place does, where better labels are shown first.
    """
    table = pa.table(
        {
            "position": events["position"],
            "shown": pc.cast(pc.equal(events["event"], "shown"), pa.int64()),
            "clicked": pc.cast(
                pc.is_in(events["event"], value_set=pa.array(["clicked", "accepted"])), pa.int64()
            ),
        }
    )
    sums = table.group_by("position").aggregate([("shown", "sum"), ("clicked", "sum")])
    sums = sums.filter(
        pc.and_(
            pc.greater_equal(sums["shown_sum"], LEAST_SHOWN), pc.greater(sums["clicked_sum"], 0)
        )
    )
    rates = pc.divide(pc.cast(sums["clicked_sum"], pa.float64()), sums["shown_sum"])
    first = pc.index(sums["position"], pa.scalar(1, pa.int32())).as_py()
    if first < 0:
        return pa.nulls(len(events), pa.float64())
    inverse = pc.max_element_wise(pc.divide(rates[first], rates), 1.0)
    return pc.take(inverse, pc.index_in(events["position"], value_set=sums["position"]))


def _with_texts(events: pa.Table, answers: pa.Table) -> pa.Table:
    texts = answers.filter(pc.is_valid(answers["text"])).group_by(["request_id", "query"])
    texts = texts.aggregate([("text", "min")])
    joined = events.join(texts, ["request_id", "query"], join_type="left outer")
    place = joined.column_names.index("text")
    text = pc.coalesce(joined["text"], joined["text_min"])
    return joined.set_column(place, "text", text).select(_EVENT_COLUMNS)


def _read(folder: Path, kind: str, columns: list[str]) -> pa.Table | None:
    tables = []
    for path in sorted(folder.glob(f"{kind}-*.parquet")):
        try:
            tables.append(pq.read_table(path, columns=columns).select(columns))
        except (pa.ArrowException, OSError, KeyError) as exc:
            raise DataError(path, None, f"a Parquet file of {kind}", str(exc)[:200]) from exc
    return pa.concat_tables(tables) if tables else None

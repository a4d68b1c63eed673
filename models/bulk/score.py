"""From an Arrow batch of texts to an Arrow batch of answers.

The engine sorts a batch by length, so a batch of a thousand texts wastes little on padding. A text
that cannot be answered gets an `error` and no labels; it never fails the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from service.core.types import Prediction
from service.recommender import Recommender, fault
from service.serving.request_models import SCORE_DECIMALS, LabelsRequest, n_reaching

LABEL = pa.struct([("id", pa.string()), ("score", pa.float64()), ("text", pa.string())])


def answer_schema(id_type: pa.DataType) -> pa.Schema:
    """The columns of an answer; `id_type` is the type of the input's ids."""
    return pa.schema(
        [
            ("id", id_type),
            ("labels", pa.list_(LABEL)),
            ("truncated", pa.bool_()),
            ("error", pa.string()),
        ]
    )


@dataclass(frozen=True, slots=True)
class Scorer:
    """Answers batches with columns `id` and `text`; `request` holds the arguments of all."""

    recommender: Recommender
    request: LabelsRequest

    def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The answers to a batch, row for row, as `answer_schema` describes them."""
        texts, errors = _texts(batch.column("text"))
        good = [row for row, error in enumerate(errors) if error is None]
        answers = self.recommender.predict([texts[row] for row in good], self.request)
        counts = np.zeros(len(texts), np.int64)
        counts[good] = [n_reaching(one.scores.tolist(), self.request.min_score) for one in answers]
        truncated = np.zeros(len(texts), np.bool_)
        truncated[good] = [one.truncated for one in answers]
        labels = self._labels(answers, counts[good])
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        columns = [
            batch.column("id"),
            pa.ListArray.from_arrays(offsets, labels),
            pa.array(truncated),
            pa.array(errors, pa.string()),
        ]
        schema = answer_schema(batch.schema.field("id").type)
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def _labels(self, answers: Sequence[Prediction], counts: Any) -> pa.StructArray:
        """The labels of all answers, one after the other."""
        parts = list(zip(answers, counts.tolist(), strict=True))
        rows = np.concatenate([np.empty(0, np.int64), *(one.rows[:n] for one, n in parts)])
        # round() and not np.round(), whose last digit may differ from that of an HTTP answer.
        scores = [round(s, SCORE_DECIMALS) for one, n in parts for s in one.scores[:n].tolist()]
        distinct, places = np.unique(rows, return_inverse=True)
        labels = [self.recommender.engine.catalogue.label(row) for row in distinct.tolist()]
        ids = pa.array([label.label_id for label in labels], pa.string())
        names = pa.array([label.text for label in labels], pa.string())
        return pa.StructArray.from_arrays(
            [ids.take(places), pa.array(scores, pa.float64()), names.take(places)],
            fields=list(LABEL),
        )


def _texts(column: pa.Array) -> tuple[list[str], list[str | None]]:
    """The texts of a column of bytes, and what is wrong with each, None for nothing."""
    texts: list[str] = []
    errors: list[str | None] = []
    for raw in column.to_pylist():
        try:
            text = None if raw is None else raw.decode("utf-8")
            error = fault(text)
        except UnicodeDecodeError as exc:
            text, error = "", f"the text is not UTF-8 at byte {exc.start}"
        texts.append(text or "")
        errors.append(error)
    return texts, errors

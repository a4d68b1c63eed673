"""Gather: what users did becomes labels of their texts, beside the data of the last training.

A text and a label with enough weight become a positive. The newest texts become test points, so
that the next model is judged by what came after its training.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack

from models.config import DataConfig, Fields
from models.data.dataset import Dataset, Points, point_texts
from models.data.earlier import text_hashes
from models.data.formats import write_dataset
from models.data.tables.table import open_data
from models.errors import DataError
from models.gather.events import Weighing, read_events, weigh
from service.core.encoding.text import split_fields


@dataclass(frozen=True)
class Gathering:
    """What to gather and how. `fields` is the `data.fields` of the model that served.

    `old_share` of the old training points stay, `test_share` of the new texts become test points.
    A text and a label need `min_weight`.
    """

    feedback: Path
    data: Path
    out: Path
    fields: Fields = "title"
    weighing: Weighing = field(default_factory=Weighing)
    min_weight: float = 0.5
    test_share: float = 0.1
    old_share: float = 1.0


def gather(what: Gathering) -> dict[str, int]:
    """Write the next data set to `out`; returns counts for the report, in order. Raises DataError.

    Old test points stay test points, and feedback on their texts is left out.
    """
    old, counts = open_data(DataConfig(path=str(what.data))), dict[str, int]()
    if old.train_filter is not None or old.test_filter is not None:
        raise DataError(what.data, None, "data without filter files", "filters by row numbers")
    texts, labels, newest = _positives(read_events(what.feedback, counts), old, what, counts)
    tested = [] if old.test is None else point_texts(old.test, what.fields)
    known = pc.is_in(texts, value_set=pa.array(tested, pa.string())).to_numpy(zero_copy_only=False)
    counts["texts left out, since they are test points"] = int(known.sum())
    keep = np.flatnonzero(~known)
    texts, labels, newest = texts.take(keep), labels[keep], newest[keep]
    train, row_of = _old_train(old, what)
    place = pc.fill_null(pc.index_in(texts, value_set=row_of), -1).to_numpy()
    is_test = _newest(newest, place < 0, what.test_share)
    train = _merge(train, labels[place >= 0], place[place >= 0])
    fresh = (place < 0) & ~is_test
    counts["texts that training points have"] = int((place >= 0).sum())
    counts["new training points"] = int(fresh.sum())
    counts["new test points"] = int(is_test.sum())
    train = _joined(train, _points(texts, labels, fresh))
    test = _points(texts, labels, is_test)
    if old.test is not None:
        test = _joined(old.test, test)
    counts["training points"], counts["test points"] = len(train), len(test)
    write_dataset(what.out, replace(old, train=train, test=test if len(test) else None))
    return counts


def _positives(
    events: pa.Table, old: Dataset, what: Gathering, counts: dict[str, int]
) -> tuple[pa.Array, csr_array, NDArray[np.int64]]:
    """Texts, their labels (n, n_labels) by weight, and the time in ms of each text's last event."""
    row = pc.index_in(events["label_id"], value_set=pa.array(old.labels.uids))
    table = pa.table(
        {
            "text": events["text"],
            "label": row,
            "weight": weigh(events, what.weighing),
            "time": pc.cast(events["time"], pa.int64()),
        }
    )
    counts["events of unknown labels"] = row.null_count
    pairs = table.filter(pc.is_valid(table["label"])).group_by(["text", "label"])
    pairs = pairs.aggregate([("weight", "sum"), ("time", "max")])
    counts["texts with labels, before the weight"] = len(pairs)
    pairs = pairs.filter(pc.greater_equal(pairs["weight_sum"], max(what.min_weight, 1e-6)))
    counts["texts with labels"] = len(pairs)
    encoded = pairs["text"].combine_chunks().dictionary_encode()
    numbers, texts = encoded.indices.to_numpy(), encoded.dictionary
    newest = np.zeros(len(texts), np.int64)
    np.maximum.at(newest, numbers, pairs["time_max"].to_numpy())
    cells = (pairs["weight_sum"].to_numpy(), (numbers, pairs["label"].to_numpy()))
    labels = csr_array(cells, shape=(len(texts), len(old.labels)), dtype=np.float32)
    labels.data[:] = 1.0  # training counts a label or not; the weight has decided
    return texts, labels, newest


def _old_train(old: Dataset, what: Gathering) -> tuple[Points, pa.Array]:
    """The old training points that stay, drawn by a hash of the text, and their texts."""
    texts = point_texts(old.train, what.fields)
    if what.old_share >= 1:
        return old.train, pa.array(texts, pa.string())
    rows = np.flatnonzero(text_hashes(texts) < what.old_share * 2.0**64)
    return old.train.take(rows), pa.array([texts[row] for row in rows], pa.string())


def _newest(time: NDArray[np.int64], new: NDArray[np.bool_], share: float) -> NDArray[np.bool_]:
    """The newest `share` of the new texts (n,)."""
    chosen = np.zeros(len(time), np.bool_)
    rows = np.flatnonzero(new)
    n_test = int(share * len(rows))
    chosen[rows[np.argsort(time[rows], kind="stable")[len(rows) - n_test :]]] = True
    return chosen


def _merge(train: Points, labels: csr_array, rows: NDArray[np.int64]) -> Points:
    """The training points, with these further labels (m, n_labels) for `rows` (m,)."""
    cells = labels.tocoo()
    where = (rows[cells.coords[0]], cells.coords[1])
    more = csr_array((cells.data, where), shape=train.labels.shape, dtype=np.float32)
    merged = csr_array(train.labels.maximum(more))
    merged.sort_indices()
    return replace(train, labels=merged)


def _points(texts: pa.Array, labels: csr_array, chosen: NDArray[np.bool_]) -> Points:
    rows = np.flatnonzero(chosen)
    views = [split_fields(text, 2) for text in texts.take(rows).to_pylist()]
    titles, contents = [view[0] for view in views], ["".join(view[1:]) for view in views]
    return Points([""] * len(rows), titles, contents, csr_array(labels[rows]))


def _joined(first: Points, second: Points) -> Points:
    return Points(
        first.uids + second.uids,
        first.titles + second.titles,
        first.contents + second.contents,
        csr_array(vstack([first.labels, second.labels], format="csr")),
    )

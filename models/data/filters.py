"""Filter pairs: for a point, labels that do not count, such as the point's own and reciprocal ones.

Training takes no negative from them; evaluation and serving leave them out of predictions. The
Extreme Classification Repository does the same with its item-to-item sets. In a data set they are
(row, label) pairs. A bundle stores them by item id, the uid of a point or a label, because a caller
knows that id and no row.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from models.data.dataset import Dataset, Points
from models.data.formats import text_file
from models.errors import DataError

Pairs = NDArray[np.int64]  # (m, 2): row, label


def filtered_pairs(pairs: NDArray[np.integer] | None, n_rows: int, n_labels: int) -> csr_array:
    """The (m, 2) pairs as a csr matrix (n_rows, n_labels) of ones; None means no pairs.

    >>> filtered_pairs(np.array([[1, 2], [1, 2], [0, 0]]), 2, 3).toarray()
    array([[1., 0., 0.],
           [0., 0., 1.]], dtype=float32)
    """
    if pairs is None or not len(pairs):
        return csr_array((n_rows, n_labels), dtype=np.float32)
    unique = np.unique(np.asarray(pairs, np.int64), axis=0)
    ones = np.ones(len(unique), np.float32)
    return csr_array((ones, (unique[:, 0], unique[:, 1])), shape=(n_rows, n_labels))


def without_cells(labels: csr_array, filtered: csr_array) -> csr_array:
    """The labels (n, n_labels) that are not `filtered` (n, n_labels) for their point.

    No answer can hold a filtered label, so it cannot be asked for either.

    >>> without_cells(csr_array([[1.0, 1.0, 0.0]]), csr_array([[1.0, 0.0, 1.0]])).toarray()
    array([[0., 1., 0.]])
    """
    kept = csr_array(labels - labels.multiply(filtered > 0))
    kept.eliminate_zeros()
    return kept


def with_own_items(dataset: Dataset) -> Dataset:
    """A copy of the data set whose filters also hold every point's own label, that of its uid."""
    rows = {uid: row for row, uid in enumerate(dataset.labels.uids)}
    test = dataset.test
    return replace(
        dataset,
        train_filter=_with_own(dataset.train, dataset.train_filter, rows),
        test_filter=_with_own(test, dataset.test_filter, rows) if test is not None else None,
    )


def item_pairs(dataset: Dataset, own_item: bool) -> tuple[list[str], NDArray[np.int64]]:
    """The filter pairs by item: a list of item ids, and (m,) the label row that each leaves out.

    They are the pairs of all points. With `own_item` every label also leaves out itself, whether a
    point has its uid or not.
    """
    item_ids = list(dataset.labels.uids) if own_item else []
    rows = [np.arange(len(item_ids))]
    for _, points, pairs in _parts(dataset):
        item_ids += [points.uids[row] for row in pairs[:, 0]]
        rows.append(pairs[:, 1])
    return item_ids, np.concatenate(rows)


def check_item_ids(dataset: Dataset, folder: Path) -> None:
    """Raise DataError where a point that a filter names has no uid, or another point's.

    Serving filters by uid, so each of two points would lose the labels of the other. Copies of one
    point may share its uid.
    """
    expected = "a uid of its own for every point, since the filters are kept by uid"
    texts: dict[str, tuple[str, str]] = {}
    for part, points, pairs in _parts(dataset):
        for row in np.unique(pairs[:, 0]).tolist():
            uid = points.uids[row]
            if not uid:
                path = text_file(folder, part)
                raise DataError(path, row + 1, expected, f'no "uid" for {points.titles[row]!r}')
            texts.setdefault(uid, (points.titles[row], points.contents[row]))
    for part, several in (("trn", dataset.train), ("tst", dataset.test)):
        if several is None:
            continue
        for row, uid in enumerate(several.uids):
            text = (several.titles[row], several.contents[row])
            if texts.get(uid, text) != text:
                differs = 0 if texts[uid][0] != text[0] else 1
                found = f'"{uid}" for {texts[uid][differs]!r} and for {text[differs]!r}'
                raise DataError(text_file(folder, part), row + 1, expected, found)


def _parts(dataset: Dataset) -> list[tuple[str, Points, Pairs]]:
    both = (
        ("trn", dataset.train, dataset.train_filter),
        ("tst", dataset.test, dataset.test_filter),
    )
    return [
        (part, points, pairs)
        for part, points, pairs in both
        if points is not None and pairs is not None
    ]


def _with_own(points: Points, pairs: Pairs | None, rows: dict[str, int]) -> Pairs:
    own = [(row, rows[uid]) for row, uid in enumerate(points.uids) if uid in rows]
    own_pairs = np.array(own, np.int64).reshape(-1, 2)
    return own_pairs if pairs is None else np.unique(np.concatenate([pairs, own_pairs]), axis=0)

"""Filter pairs: for a point, labels that do not count, such as the point's own and reciprocal ones.

Training takes no negative from them; evaluation and serving leave them out of predictions. The
Extreme Classification Repository does the same with its item-to-item sets. In a data set they are
(row, label) pairs. A bundle stores them by item id, the uid of a point or a label, because a caller
knows that id and no row.
"""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from models.data.dataset import Dataset, Points
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


def with_own_items(dataset: Dataset) -> Dataset:
    """A copy of the data set whose filters also hold every point's own label, that of its uid."""
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for row, uid in enumerate(dataset.labels.uids):
        rows[uid].append(row)
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
    for points, pairs in _parts(dataset):
        item_ids += [points.uids[row] for row in pairs[:, 0]]
        rows.append(pairs[:, 1])
    return item_ids, np.concatenate(rows)


def check_item_ids(dataset: Dataset, folder: Path) -> None:
    """Raise DataError where points with different titles share a uid that a filter names.

    Serving filters by uid, so each of the points would lose the labels of the other.
    """
    titles = {
        points.uids[row]: points.titles[row]
        for points, pairs in _parts(dataset)
        for row in np.unique(pairs[:, 0])
    }
    for points in (dataset.train, dataset.test):
        if points is None:
            continue
        for uid, title in zip(points.uids, points.titles, strict=True):
            if titles.get(uid, title) != title:
                raise DataError(
                    folder,
                    None,
                    "a uid of its own for every point, since the filter files are kept by uid",
                    f'"{uid}" for {titles[uid]!r} and for {title!r}',
                )


def _parts(dataset: Dataset) -> list[tuple[Points, Pairs]]:
    both = ((dataset.train, dataset.train_filter), (dataset.test, dataset.test_filter))
    return [(points, pairs) for points, pairs in both if points is not None and pairs is not None]


def _with_own(points: Points, pairs: Pairs | None, rows: dict[str, list[int]]) -> Pairs:
    own = [(row, label) for row, uid in enumerate(points.uids) for label in rows.get(uid, ())]
    own_pairs = np.array(own, np.int64).reshape(-1, 2)
    return own_pairs if pairs is None else np.unique(np.concatenate([pairs, own_pairs]), axis=0)

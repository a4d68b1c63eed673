"""Pairs of a row and a label that are left out: an item itself, and reciprocal pairs.

They are no negatives in training and no predictions in evaluation and serving (methods of the
Extreme Classification Repository's item-to-item sets). In a data set they are (row, label) pairs;
a bundle keeps them by item id, the uid of a point or a label, for that is what a caller can name.
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
    """The (m, 2) pairs as a csr matrix (n_rows, n_labels) of ones; None is no pair.

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
    """The data set with every point's own label, the one of its uid, among the filtered pairs."""
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
    """What to leave out for which item: item ids and, one for each, the label row.

    Of every filtered point; with `own_item` of every label too, whether it is a point or not.
    """
    item_ids = list(dataset.labels.uids) if own_item else []
    rows = [np.arange(len(item_ids))]
    for points, pairs in _parts(dataset):
        item_ids += [points.uids[row] for row in pairs[:, 0]]
        rows.append(pairs[:, 1])
    return item_ids, np.concatenate(rows)


def check_item_ids(dataset: Dataset, folder: Path) -> None:
    """Refuse a filtered uid that names points with different titles. Raises DataError.

    Answers are filtered by uid, so one of the two points would lose the labels of the other.
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
    found = np.array(own, np.int64).reshape(-1, 2)
    return found if pairs is None else np.unique(np.concatenate([pairs, found]), axis=0)

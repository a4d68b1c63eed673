"""The job that all stages share."""

from dataclasses import replace

import numpy as np


def test_a_filtered_label_is_not_asked_for_on_validation_points(tiny_job, sealed):
    """No answer may hold it, so an answer with all other labels is perfect."""
    train, rows = tiny_job.dataset.train.labels, tiny_job.parts.validation_rows
    place = int(np.flatnonzero(np.diff(train[rows].indptr) > 1)[0])
    point = rows[place]
    label = train.indices[train.indptr[point]]
    dataset = replace(tiny_job.dataset, train_filter=np.array([[point, label]]))
    before, validation = tiny_job.validation, replace(tiny_job, dataset=dataset).validation
    assert before.truth[[place], [label]].item() == 1
    assert validation.truth[[place], [label]].item() == 0
    assert validation.truth.nnz == before.truth.nnz - 1
    assert validation.filter_pairs.tolist() == [[place, label]]

"""A memory and an item filter come along when changes are folded."""

import numpy as np
import pytest

from models import stages
from models.seal.fold import fold
from service.bundle.verify import read_manifest
from service.core.catalogue.changes import Change
from service.core.engine import Engine
from service.core.types import Query
from tests.support.shop import add, answer, opened
from tests.support.tiny_job import write_tiny_job


@pytest.mark.slow
def test_memory_and_filter_rows_move_with_their_labels(tmp_path):
    settings = ("memory.kind=queries", "data.own_item=true", "index.kind=flat")
    config = write_tiny_job(tmp_path, *settings)
    base = stages.run_all(config, tmp_path / "var")
    titles = stages.open_configured(config).train.titles[:20]
    with opened(base, tmp_path / "state") as (engine, catalogue):
        assert engine.manifest.memory is not None
        labels = [engine.labels[row] for row in (0, 1, 30, 31)]
        catalogue.apply(
            [Change("remove", label.label_id) for label in labels[:3]]
            + [add("new", labels[0].text), Change("update", labels[3].label_id, text="other words")]
        )
        live = [answer(engine, catalogue, title) for title in titles]
    after = fold(base, tmp_path / "state", tmp_path / "folded")
    with opened(after, tmp_path / "state") as (engine, catalogue):
        now = [answer(engine, catalogue, title) for title in titles]
        assert [[name for name, _ in each] for each in now] == [
            [name for name, _ in each] for each in live
        ]
        scores = [[score for _, score in each] for each in (*now, *live)]
        np.testing.assert_allclose(scores[: len(now)], scores[len(now) :], atol=1e-4)
        check_own_item(engine, read_manifest(after).labels.n_labels)


def check_own_item(engine: Engine, n_labels: int) -> None:
    """Whoever names an item gets every label but the one of that id, also a new one."""
    assert engine.item_filter is not None
    for row in range(n_labels):
        label = engine.labels[row]
        [answered] = engine.predict(
            [Query(label.text, n_labels, "exact", label.label_id)]
        ).predictions
        assert row not in answered.rows

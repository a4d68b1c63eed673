"""Figures of a bundle with an item filter: what is measured is what is served."""

from dataclasses import replace

import numpy as np
import pytest

from models.data.dataset import LabelCatalogue
from models.quality.evaluate import evaluate
from models.seal.release import release
from service.bundle.manifest import Defaults
from service.bundle.verify import read_manifest, verify
from service.core.engine import Engine
from service.core.types import Query

BOTH = pytest.mark.parametrize("effort", ["balanced", "exact"])


@pytest.fixture(scope="module")
def filtered(tiny_job, sealed, tmp_path_factory):
    """(data set, sealed bundle) where some test points have their best labels filtered."""
    dataset = tiny_job.dataset
    rng = np.random.default_rng(3)
    answers = Engine.open(sealed, device="cpu").predict(
        [Query(title, 5, "exact") for title in dataset.test.titles]
    )
    rows = np.repeat(np.arange(len(dataset.test)), 5)
    best = np.concatenate([answer.rows for answer in answers.predictions])
    test_filter = np.stack([rows, best], axis=1)[rng.random(len(rows)) < 0.2]
    train_filter = np.array([[4, 1], [4, 2], [9, 0]])
    dataset = replace(dataset, test_filter=test_filter, train_filter=train_filter)
    bundles = tmp_path_factory.mktemp("filtered")
    return dataset, release(tiny_job.run, dataset, tiny_job.parts, bundles)


def figures(engine, dataset, split):
    return evaluate(engine, dataset, split, "title", 0.55, 1.5)


@BOTH
@pytest.mark.parametrize("split", ["test", "train"])
def test_the_bundles_filter_gives_the_figures_of_removing_the_pairs(filtered, split, effort):
    dataset, bundle = filtered
    engine = Engine.open(bundle, device="cpu")
    defaults = Defaults(k=engine.manifest.defaults.k, effort=effort)
    engine = replace(engine, manifest=engine.manifest.model_copy(update={"defaults": defaults}))
    served = figures(engine, dataset, split)
    assert served == figures(replace(engine, item_filter=None), dataset, split)
    if split == "test":
        unfiltered = replace(dataset, test_filter=None)
        assert served != figures(replace(engine, item_filter=None), unfiltered, split)


def test_the_sealed_figures_are_those_of_the_filter(filtered):
    dataset, bundle = filtered
    assert read_manifest(bundle).quality == figures(
        Engine.open(bundle, device="cpu"), dataset, "test"
    )


def test_filter_files_go_into_the_bundle_by_item(filtered):
    dataset, bundle = filtered
    info = verify(bundle).filter
    assert info.own_item is False
    assert info.n_pairs == len(dataset.test_filter) + 3
    found = Engine.open(bundle, device="cpu").item_filter
    assert found.rows_for(dataset.train.uids[4]).tolist() == [1, 2]
    row, label = dataset.test_filter[0]
    assert label in found.rows_for(dataset.test.uids[row])
    assert "Answers that name an item leave out pairs left out" in (
        bundle / "MODEL_CARD.md"
    ).read_text("utf-8")


def test_data_without_filters_leave_no_files(sealed):
    assert read_manifest(sealed).filter is None
    assert not list(sealed.glob("filter.*"))


def test_own_items_go_into_the_bundle_with_every_label(tiny_job, sealed, tmp_path):
    run, dataset = tiny_job.run, tiny_job.dataset
    config = run.config.model_copy(
        update={"data": run.config.data.model_copy(update={"own_item": True})}
    )
    uids = [dataset.train.uids[0], *dataset.labels.uids[1:]]
    labels = LabelCatalogue(uids, dataset.labels.titles, dataset.labels.contents)
    changed = replace(run, config=config), replace(dataset, labels=labels)
    bundle = release(*changed, tiny_job.parts, tmp_path / "b")
    info = read_manifest(bundle).filter
    assert (info.own_item, info.n_items, info.n_pairs) == (True, len(uids), len(uids))
    engine = Engine.open(bundle, device="cpu")
    query = Query(labels.titles[7], 3, "exact", uids[7])
    assert 7 not in engine.predict([query]).predictions[0].rows
    assert engine.item_filter.rows_for(dataset.train.uids[0]).tolist() == [0]

"""Figures of a bundle with an item filter: what is measured is what is served."""

from dataclasses import replace

import numpy as np
import pytest

from models.data.dataset import LabelCatalogue
from models.quality.evaluate import Part, evaluate
from models.seal.release import release
from models.stages import run_prepare
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
    part = {"test": Part.test, "train": Part.train}[split](dataset, "title")
    return evaluate(engine, dataset, part, "title", 0.55, 1.5)


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


def test_figures_also_come_without_points_whose_series_was_trained_on(tiny_job, sealed):
    """A quarter of the test points are another volume of a training point."""
    dataset, engine = tiny_job.dataset, Engine.open(sealed, device="cpu")
    n = len(dataset.test) // 4
    volumes = [f"{title}, Volume 2" for title in dataset.train.titles[:n]]
    titles = [*volumes, *dataset.test.titles[n:]]
    leaky = replace(dataset, test=replace(dataset.test, titles=titles))
    part = Part.test(leaky, "title")
    assert part.seen[:n].all()
    whole = figures(engine, leaky, "test")
    assert whole.n_seen == part.seen.sum()
    clean = replace(leaky, test=leaky.test.take(np.flatnonzero(~part.seen)))
    alone = figures(engine, clean, "test")
    expected = {name: value for name, value in alone.metrics.items() if name in whole.unseen}
    assert whole.unseen == pytest.approx(expected)
    assert {"p1", "p5", "psp5", "r100"} <= whole.unseen.keys()
    assert (alone.n_seen, alone.unseen) == (0, {})


def test_a_figure_is_less_sure_where_points_come_in_series(tiny_job, sealed):
    engine = Engine.open(sealed, device="cpu")
    part = Part.test(tiny_job.dataset, "title")
    one_by_one, in_fours = (
        evaluate(engine, tiny_job.dataset, replace(part, groups=groups), "title", 0.55, 1.5)
        for groups in (np.arange(len(part.seen)), np.arange(len(part.seen)) // 40)
    )
    share = one_by_one.metrics["p1"] / 100
    plain = 100 * np.sqrt(share * (1 - share) / one_by_one.n_queries)
    assert one_by_one.errors["p1"] == pytest.approx(plain, abs=0.01)
    assert in_fours.errors != one_by_one.errors
    assert in_fours.metrics == one_by_one.metrics


def test_without_test_points_the_sealed_figures_are_of_validation_points(
    tiny_job, sealed, tmp_path
):
    dataset = replace(tiny_job.dataset, test=None, test_filter=None)
    quality = read_manifest(release(tiny_job.run, dataset, tiny_job.parts, tmp_path)).quality
    rows = tiny_job.parts.validation_rows
    assert quality.split == "validation"
    assert quality.n_queries == np.count_nonzero(np.diff(dataset.train.labels[rows].indptr))
    assert quality.n_seen == 0


def test_the_report_on_the_data_counts_test_points_of_trained_series(tiny_job):
    dataset = tiny_job.dataset
    titles = [f"{dataset.train.titles[0]}: Part 2", *dataset.test.titles[1:]]
    leaky = replace(dataset, test=replace(dataset.test, titles=titles))
    n_seen = int(Part.test(leaky, "title").seen.sum())
    assert n_seen >= 1
    line = f"test points whose series has a training point: {n_seen} of {len(titles)}"
    assert line in run_prepare(replace(tiny_job, dataset=leaky))

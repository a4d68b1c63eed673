"""Training that goes on from an earlier model, and the gate that compares the two."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from models import stages
from models.data.dataset import LabelCatalogue, point_texts
from models.data.earlier import trained_on
from models.data.formats import write_dataset
from models.errors import ConfigError, ReleaseError, RunError
from models.runs import LABEL_IDS_FILE, MODEL_FILE, TOKENIZER_FILE
from models.seal.not_worse import bootstrap_interval
from service.bundle.verify import read_manifest
from tests.support.tiny_job import tiny_dataset, write_tiny_job

RENAMED = 3


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A job on half of the points, sealed."""
    folder = tmp_path_factory.mktemp("earlier")
    whole = tiny_dataset()
    write_dataset(folder / "data", replace(whole, train=whole.train.take(range(450))))
    bundle = stages.run_all(write_tiny_job(folder), folder / "var")
    return stages.TrainingJob.open(write_tiny_job(folder), folder / "var"), bundle


def next_job(folder, earlier, *overrides):
    """A configuration on all points, with one label that is new and one that is gone."""
    whole, data = tiny_dataset(), folder / "data"
    names = whole.labels
    uids = [*names.uids]
    uids[RENAMED] = "brand-new"
    labels = LabelCatalogue(uids, names.titles, names.contents)
    write_dataset(data, replace(whole, labels=labels))
    path = earlier[0].run.folder
    return write_tiny_job(folder, f'train.start_from="{path}"', *overrides)


@pytest.fixture(scope="module")
def following(earlier, tmp_path_factory):
    """The sealed job that goes on from the earlier one by an epoch of nearly no learning."""
    folder = tmp_path_factory.mktemp("following")
    slow = ("train.epochs=2", "train.encoder_lr=1e-9", "train.label_lr=1e-9")
    gate = (f'release.not_worse_than="{earlier[1]}"', "release.not_worse_margin=10")
    config = next_job(folder, earlier, *slow, *gate)
    bundle = stages.run_all(config, folder / "var")
    return stages.TrainingJob.open(config, folder / "var"), bundle


def test_labels_keep_their_vectors_and_new_ones_start_at_their_text(earlier, following):
    before = load_file(str(earlier[0].run.folder / MODEL_FILE))["labels.weight"]
    after = load_file(str(following[0].run.folder / MODEL_FILE))["labels.weight"]
    same = np.isclose(before, after, atol=1e-3).all(axis=1)
    assert np.flatnonzero(~same).tolist() == [RENAMED]
    counts = following[0].run.measured()["started_from"]["labels"]
    assert counts == {"kept": 59, "new": 1, "vanished": 1}


def test_the_tokenizer_is_the_earlier_one(earlier, following):
    texts = [(job.run.folder / TOKENIZER_FILE).read_bytes() for job, _ in (earlier, following)]
    assert texts[0] == texts[1]


def test_no_point_of_the_earlier_training_validates_the_next(earlier, following):
    first, second = earlier[0], following[0]
    texts = point_texts(first.dataset.train.take(first.parts.train_rows), "title+content")
    validating = second.dataset.train.take(second.parts.validation_rows)
    assert not set(texts) & set(point_texts(validating, "title+content"))
    assert trained_on(second.run.config, texts).all()


def test_the_card_and_the_run_tell_where_training_began(earlier, following):
    path = str(earlier[0].run.folder)
    assert f"went on from {path}" in (following[1] / "MODEL_CARD.md").read_text()
    compared = following[0].run.measured()["not_worse_than"]
    assert compared["bundle"] == read_manifest(earlier[1]).bundle_id
    assert compared["split"] == "test"
    assert compared["low"] <= compared["p_at_1"] - compared["p_at_1_before"] <= compared["high"]


def test_a_bundle_stands_for_its_run(earlier, tmp_path):
    config = write_tiny_job(tmp_path, f'train.start_from="{earlier[1]}"')
    assert stages.TrainingJob.open(config, tmp_path / "var").parts.validation_rows.size


def test_a_worse_candidate_is_not_sealed(earlier, tmp_path):
    weak = ("train.epochs=2", "train.encoder_lr=1e-9", "train.label_lr=1e-9", "seed=6")
    config = write_tiny_job(tmp_path, *weak, f'release.not_worse_than="{earlier[1]}"')
    with pytest.raises(ReleaseError, match="not_worse_margin"):
        stages.run_all(config, tmp_path / "var")
    assert not list((tmp_path / "var").glob("bundles/*/*/manifest.json"))


@pytest.mark.parametrize(
    ("override", "fault"),
    [("encoder.max_tokens=20", "another encoder"), ("method.score_scale=11.0", "score_scale")],
)
def test_a_model_that_does_not_fit_is_refused(earlier, tmp_path, override, fault):
    config = next_job(tmp_path, earlier, override)
    with pytest.raises(RunError, match=fault):
        stages.run_train(stages.TrainingJob.open(config, tmp_path / "var"))


def test_a_run_of_older_code_is_refused(earlier, tmp_path):
    run = earlier[0].run
    names = run.folder / LABEL_IDS_FILE
    kept = names.read_text()
    names.unlink()
    try:
        with pytest.raises(RunError, match=LABEL_IDS_FILE):
            stages.TrainingJob.open(next_job(tmp_path, earlier), tmp_path / "var")
    finally:
        names.write_text(kept)


def test_elias_does_not_go_on(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.start_from"):
        write_tiny_job(
            tmp_path, "method.kind=elias", "index.kind=learned-graph", "train.start_from=var/x"
        )


def test_the_interval_is_wider_where_points_go_together():
    rng = np.random.default_rng(1)
    values = np.repeat(rng.normal(size=50), 10)
    alone = bootstrap_interval(values, np.arange(500), np.random.default_rng(2))
    together = bootstrap_interval(values, np.repeat(np.arange(50), 10), np.random.default_rng(2))
    assert alone[0] < values.mean() < alone[1]
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])

"""Opening what a configuration names, with the filters that it adds."""

from dataclasses import replace

import numpy as np
import pytest

from models import stages
from models.data import prepare, splits
from models.data.dataset import LabelCatalogue, point_texts
from models.data.formats import write_dataset
from models.data.prepare import open_configured, split
from models.errors import DataError, RunError
from models.runs import TOKENIZER_FILE
from service.core.encoding.tokenizer import Tokenizer
from tests.support.synthetic import synthetic_dataset
from tests.support.tiny_job import write_tiny_job


@pytest.fixture
def items(tmp_path):
    """A data set whose first label is its third training point; the folder of its configuration."""
    dataset = synthetic_dataset(4, 200, 2, seed=1)
    labels = dataset.labels
    uids = ["train-2", *labels.uids[1:]]
    labels = LabelCatalogue(uids, labels.titles, labels.contents)
    write_dataset(tmp_path / "data", replace(dataset, labels=labels))
    return tmp_path


def test_own_items_are_filtered_where_the_configuration_says_so(items):
    assert open_configured(write_tiny_job(items)).train_filter is None
    opened = open_configured(write_tiny_job(items, "data.own_item=true"))
    assert opened.train_filter.tolist() == [[2, 0]]
    assert opened.test_filter.shape == (0, 2)


def test_filter_files_of_points_that_share_a_uid_are_refused(tmp_path):
    dataset = synthetic_dataset(4, 200, 2, seed=1)
    dataset.test.uids[0] = "train-0"
    write_dataset(tmp_path / "data", replace(dataset, test_filter=np.array([[0, 1]])))
    with pytest.raises(DataError, match=r'a uid of its own for every point.*"train-0"'):
        open_configured(write_tiny_job(tmp_path))


def test_points_whose_contents_open_alike_stay_on_one_side(tmp_path):
    dataset = synthetic_dataset(4, 400, 2, seed=1)
    n = len(dataset.train)
    # Pairs of one source, and a source that is too large to be drawn.
    sources = [min(row // 2, 100) for row in range(n)]
    contents = [f"{chr(97 + source % 10) * (1 + source // 10)} is a source" for source in sources]
    train = replace(dataset.train, contents=contents)
    write_dataset(tmp_path / "data", replace(dataset, train=train))
    config = write_tiny_job(tmp_path, "validation.group=content", "validation.points=100")
    parts = split(config, open_configured(config))
    drawn = {sources[row] for row in parts.validation_rows}
    assert drawn.isdisjoint(sources[row] for row in parts.train_rows)
    assert 100 not in drawn
    assert len(parts.validation_rows) == 100


def test_a_run_begun_with_another_split_is_not_gone_on_with(tmp_path, monkeypatch):
    config = write_tiny_job(tmp_path)
    stages.TrainingJob.open(config, tmp_path / "var")
    stages.TrainingJob.open(config, tmp_path / "var")

    def drawn_otherwise(*arguments, **settings):
        train_rows, validation_rows = splits.validation_split(*arguments, **settings)
        train_rows[0], validation_rows[0] = validation_rows[0], train_rows[0]
        return np.sort(train_rows), np.sort(validation_rows)

    monkeypatch.setattr(prepare, "validation_split", drawn_otherwise)
    with pytest.raises(RunError, match=r"other validation points.*delete that folder"):
        stages.TrainingJob.open(config, tmp_path / "var")


def test_a_jobs_texts_are_tokenised_once_for_all_who_read_them(sealed, tiny_job, monkeypatch):
    job = stages.TrainingJob.of_run(tiny_job.run.folder, tiny_job.bundles.parents[1])
    tokenize, n_texts = prepare.tokenize_texts, []

    def counting(tokenizer, texts):
        n_texts.append(len(texts))
        return tokenize(tokenizer, texts)

    monkeypatch.setattr(prepare, "tokenize_texts", counting)
    parts = ("train", "validation", "labels", "points")
    for corpus in (job.corpus, job.corpus):
        lengths = [len(getattr(corpus, part)) for part in parts]
    assert job.validation.queries is job.corpus.validation
    assert sum(n_texts) == sum(lengths[:3]) == len(job.dataset.train) + len(job.dataset.labels)
    tokenizer = Tokenizer(job.run.folder / TOKENIZER_FILE, job.run.config.encoder.max_tokens)
    whole = tokenize(tokenizer, point_texts(job.dataset.train, job.run.config.data.fields))
    assert np.array_equal(job.corpus.points.ids, whole.ids)
    assert np.array_equal(job.corpus.points.offsets, whole.offsets)
    job.corpus.drop("train", "labels")
    assert len(job.corpus.train) == lengths[0] == n_texts[-1]

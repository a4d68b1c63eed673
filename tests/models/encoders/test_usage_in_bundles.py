"""What a source reads before queries and labels is read in training, serving, changes and folds."""

import json
import shutil

import numpy as np
import pytest

from models import stages
from models.encoders.build import embed
from models.seal.fold import fold
from models.trained import load_model
from service.bundle.verify import read_manifest
from service.core.encoding.embedding import embed_texts
from service.core.types import Query
from tests.support.shop import add, opened
from tests.support.tiny_job import write_tiny_job

QUERY, LABEL = "baw cuv: ", "dex fip: "
SETTINGS = (
    *("encoder.kind=transformer", "encoder.dim=12", "encoder.projection_start=axes"),
    *("train.epochs=2", "index.kind=flat", "export.serve=fp32"),
)


@pytest.fixture(scope="module")
def source(bert, tmp_path_factory):
    """The tiny source as a folder of sentence-transformers, with a prompt for each role."""
    folder = shutil.copytree(bert, tmp_path_factory.mktemp("source") / "prompted")
    prompts = {"prompts": {"query": QUERY, "passage": LABEL}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return folder


def embedded(engine, prefix, texts):
    return embed_texts(engine.tokenizer.with_prefix(prefix), engine.encoder, texts, 4096)


def directions(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.slow
def test_every_stage_reads_the_same_prefixes(source, tmp_path):
    config = write_tiny_job(tmp_path, f"encoder.source={source}", *SETTINGS)
    bundle = stages.run_all(config, tmp_path / "var")
    assert stages.find_sealed(config, tmp_path / "var") == bundle
    spec = read_manifest(bundle).tokenizer
    assert (spec.query_prefix, spec.label_prefix) == (QUERY, LABEL)

    job = stages.TrainingJob.open(config, tmp_path / "var")
    titles, names = job.dataset.train.titles, job.dataset.labels.titles[:5]
    rows = job.parts.validation_rows[:5]
    encoder = load_model(job.run).encoder
    with opened(bundle, tmp_path / "state") as (engine, catalogue):
        answers = engine.predict([Query(titles[row], 3, "exact") for row in rows]).predictions
        served = np.stack([answer.embedding for answer in answers])
        trained = embed(encoder, job.corpus.validation.take(np.arange(5)))
        assert np.abs(served - trained).max() < 1e-5
        as_labels = embed(encoder, job.corpus.labels.take(np.arange(5)))
        assert np.abs(embedded(engine, LABEL, names) - as_labels).max() < 1e-5
        assert np.abs(embedded(engine, QUERY, names) - as_labels).max() > 1e-3

        catalogue.apply([add(f"new {place}", text) for place, text in enumerate(names)])
        added = directions(catalogue.snapshot.delta.vectors)
        assert np.abs(added - as_labels).max() < 1e-5
    folded = fold(bundle, tmp_path / "state", tmp_path / "folded")
    assert read_manifest(folded).tokenizer == spec
    with opened(folded, tmp_path / "state") as (engine, _):
        last = engine.index.vectors(np.arange(engine.index.n_rows)[-5:])
        assert np.abs(directions(last) - as_labels).max() < 1e-3
        assert engine.manifest.folded.scale == pytest.approx(
            np.linalg.norm(last, axis=1).mean(), rel=1e-3
        )

"""Sealing: what passes the gate opens and says what it is; what does not leaves nothing."""

import errno
import os

import numpy as np
import pytest

from models import stages
from models.data.dataset import point_texts
from models.data.prepare import split
from models.errors import ReleaseError
from models.seal.release import check_parity
from service.bundle.manifest import ParityInfo
from service.bundle.verify import read_manifest, verify
from service.core.drift import histogram_counts
from service.core.engine import Engine
from service.core.types import Query
from tests.support.tiny_job import N_LABELS


def test_a_sealed_bundle_verifies_and_is_named_by_its_content(sealed):
    manifest = verify(sealed)
    assert sealed.name == manifest.bundle_id
    assert manifest.labels.n_labels == N_LABELS
    assert len(manifest.golden) == 5
    assert [point.name for point in manifest.operating_points] == list(
        ("fast", "balanced", "thorough", "exact")
    )


def test_recorded_quality_is_what_evaluating_again_finds(sealed, tiny_job):
    recorded = read_manifest(sealed).quality
    again = stages.run_evaluate(tiny_job.run.config, sealed, "test")
    assert again == recorded
    assert recorded.split == "test"
    assert recorded.metrics["p1"] > 60
    assert recorded.metrics["p1"] >= recorded.metrics["p3"] >= recorded.metrics["p5"]


def test_the_reference_is_what_validation_texts_get_from_the_sealed_bundle(sealed, tiny_job):
    reference = read_manifest(sealed).reference
    train, fields = tiny_job.dataset.train, tiny_job.run.config.data.fields
    rows = split(tiny_job.run.config, tiny_job.dataset).validation_rows
    assert (reference.split, reference.n_queries) == ("validation", len(rows))
    texts = point_texts(train, fields)
    answers = Engine.open(sealed, device="cpu").predict(
        [Query(texts[row], 1, "balanced") for row in rows]
    )
    scores = np.array([answer.scores[0] for answer in answers.predictions], np.float64)
    lengths = np.array([answer.n_tokens for answer in answers.predictions], np.float64)
    seen = reference.top_score
    np.testing.assert_allclose(seen.counts, histogram_counts(scores, seen.bounds), atol=1)
    seen = reference.query_tokens
    assert seen.counts == histogram_counts(lengths, seen.bounds).tolist()


def test_the_card_states_the_figures_of_the_manifest(sealed):
    card = (sealed / "MODEL_CARD.md").read_text()
    assert f"| p1 | {read_manifest(sealed).quality.metrics['p1']:.2f} |" in card


def test_training_and_serving_share_normalise_and_tokenizer(sealed, tiny_job):
    """A text with stray white space and controls gets the answer of its clean twin."""
    engine = Engine.open(sealed, device="cpu")
    text = tiny_job.dataset.train.titles[0]
    messy = "  " + text.replace(" ", " \t\u200b ") + "\r\n"
    clean, dirty = engine.predict([Query(text, 5, "exact"), Query(messy, 5, "exact")]).predictions
    assert clean.rows.tolist() == dirty.rows.tolist()


def test_asking_again_finds_the_sealed_bundle(sealed, tiny_job, monkeypatch):
    monkeypatch.setattr(stages, "run_train", lambda job: pytest.fail("trained again"))
    assert stages.run_all(tiny_job.run.config, tiny_job.bundles.parent.parent) == sealed


def test_a_full_disk_while_sealing_leaves_no_half_bundle(sealed, tiny_job, monkeypatch, tmp_path):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("models.seal.release.write_labels", fail)
    with pytest.raises(OSError, match="No space left"):
        stages.release(tiny_job.run, tiny_job.dataset, tiny_job.parts, tmp_path / "bundles")
    assert list((tmp_path / "bundles").iterdir()) == []


@pytest.mark.parametrize(
    ("parity", "sentence"),
    [
        (ParityInfo(max_abs_diff=0.1, top1_agreement=1.0, n_queries=9), "differs from torch by"),
        (ParityInfo(max_abs_diff=0.0, top1_agreement=0.9, n_queries=9), "agrees with torch"),
    ],
)
def test_an_export_that_differs_is_refused(tiny_job, parity, sentence):
    with pytest.raises(ReleaseError, match=sentence):
        check_parity(tiny_job.run.config, parity)

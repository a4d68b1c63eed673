"""A run with another kind of index is sealed and answers."""

import shutil
from dataclasses import replace

import pytest

from models import stages
from models.index.registry import KINDS
from models.runs import CALIBRATION_FILE, Run
from service.core.engine import Engine
from service.core.types import Query


def with_sections(config, **sections):
    changed = {
        name: getattr(config, name).model_copy(update=values) for name, values in sections.items()
    }
    return config.model_copy(update=changed)


@pytest.mark.parametrize(
    ("kind", "memory"),
    [
        ("pq-fastscan", "none"),
        ("pq-fastscan", "queries"),
        ("ivf-flat", "none"),
        ("ivf-pq", "none"),
        ("label-tree", "none"),
    ],
)
def test_a_run_is_sealed_and_served_with_any_kind(sealed, tiny_job, tmp_path, kind, memory):
    old = tiny_job.run
    folder = shutil.copytree(old.folder, tmp_path / "run")
    (folder / CALIBRATION_FILE).unlink()
    config = with_sections(old.config, index={"kind": kind}, memory={"kind": memory})
    job = replace(tiny_job, run=Run(folder, config, old.data_sha256), bundles=tmp_path / "bundles")
    stages.run_index(job)
    engine = Engine.open(stages.run_release(job), device="cpu")
    info = engine.manifest.index
    assert (info.kind, info.metric, info.n_rows) == (kind, KINDS[kind].metric, len(engine.labels))
    texts = tiny_job.dataset.train.titles[:20]
    reference = Engine.open(sealed, device="cpu")
    answers = [
        one.predict([Query(text, 3, "exact") for text in texts]).predictions
        for one in (engine, reference)
    ]
    if memory == "none":
        for ours, theirs in zip(*answers, strict=True):
            if info.metric == "inner_product":  # probabilities are calibrated in another way
                assert ours.scores == pytest.approx(theirs.scores, abs=2e-3)
            else:
                assert ours.rows.tolist() == theirs.rows.tolist()

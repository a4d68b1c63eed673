"""The next bundle answers as the changed catalogue did, and says what it is."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from models.__main__ import main
from models.errors import FoldError
from models.seal.fold import fold
from service.bundle.manifest import MANIFEST, POINTER
from service.bundle.verify import read_manifest, resolve, verify
from service.core.catalogue.changes import Change
from service.core.catalogue.sqlite_store import SqliteStore, store_path
from service.core.engine import Engine
from tests.support.shop import add, answer, opened
from tests.support.tiny_bundle import seal
from tests.support.tiny_job import N_LABELS
from tests.support.tiny_rerank import DEPTH, add_reranker

TEXTS = 12


def some_changes(engine: Engine) -> list[Change]:
    labels = [engine.labels[row] for row in range(N_LABELS)]
    return [
        add("new-1", labels[3].text + " " + labels[9].text, shelf=7),
        add("new-2", labels[20].text),
        Change("remove", labels[5].label_id),
        Change("remove", labels[6].label_id),
        Change("update", labels[7].label_id, text=labels[8].text + " again"),
        Change("update", labels[11].label_id, metadata={"shelf": 8}),
    ]


def asked(job) -> list[str]:
    return job.dataset.train.titles[:TEXTS]


@pytest.fixture(scope="module")
def folded(sealed, tiny_job, tmp_path_factory):
    """The bundle before, the state folder, the bundle after, and what was answered in between."""
    state = tmp_path_factory.mktemp("state")
    out = tmp_path_factory.mktemp("bundles")
    with opened(sealed, state) as (engine, catalogue):
        applied = catalogue.apply(some_changes(engine))
        live = [answer(engine, catalogue, text) for text in asked(tiny_job)]
        rows = catalogue.rows_where({"shelf": [7, 8]})
        found = sorted(catalogue.label(int(row)).label_id for row in rows)
    return fold(sealed, state, out), state, applied, live, found


def test_the_next_bundle_answers_as_the_changed_catalogue_did(folded, tiny_job):
    after, state, _, live, found = folded
    with opened(after, state) as (engine, catalogue):
        assert catalogue.snapshot is None, "nothing is left to apply"
        for text, before in zip(asked(tiny_job), live, strict=True):
            now = answer(engine, catalogue, text)
            assert [name for name, _ in now] == [name for name, _ in before]
            np.testing.assert_allclose([s for _, s in now], [s for _, s in before], atol=2e-2)
        rows = catalogue.rows_where({"shelf": [7, 8]})
        assert sorted(catalogue.label(int(row)).label_id for row in rows) == found


def test_the_manifest_and_the_card_say_what_was_folded(folded, sealed):
    after, _, applied, *_ = folded
    manifest, base = verify(after), read_manifest(sealed)
    told = manifest.folded
    assert told is not None
    assert (told.name, told.seq, told.base) == (base.name, applied.seq, base.bundle_id)
    assert (told.n_added, told.n_updated, told.n_removed, told.n_added_in_all) == (2, 2, 2, 3)
    assert manifest.labels.n_labels == N_LABELS
    assert manifest.quality == base.quality
    assert manifest.reference == base.reference
    assert len(manifest.golden) == len(base.golden)
    card = (after / "MODEL_CARD.md").read_text()
    assert "2 labels added, 2 updated, 2 removed" in card
    assert "gave 3 labels the vector of their text" in card
    assert resolve(after.parent) == after


def test_later_changes_reach_both_bundles_and_fold_again(folded, sealed, tiny_job, tmp_path):
    after, state, *_ = folded
    again = tmp_path / "state"
    shutil.copytree(state, again)
    with opened(after, again) as (engine, new), opened(sealed, again) as (old_engine, old):
        new.apply([add("new-3", "a later one"), Change("remove", "new-2")])
        assert old.poll()
        for each, of in ((new, engine), (old, old_engine)):
            assert each.row_of("new-2") is None
            assert answer(of, each, "a later one")[0][0] == "new-3"
        text = asked(tiny_job)[0]
        live = answer(engine, new, text)
    second = fold(after, again, tmp_path / "bundles")
    told = read_manifest(second).folded
    assert told is not None
    assert (told.n_added, told.n_removed, told.n_added_in_all) == (1, 1, 4)
    assert told.scale == read_manifest(after).folded.scale
    with opened(second, again) as (engine, catalogue):
        assert [name for name, _ in answer(engine, catalogue, text)] == [name for name, _ in live]


def test_the_command_folds_and_prints_the_new_figures(folded, sealed, tmp_path, capsys):
    _, state, *_ = folded
    out = tmp_path / "out"
    command = ["fold", "--bundle", str(sealed), "--state", str(state), "--out", str(out)]
    assert main(command) == 0
    assert "recall@10" in capsys.readouterr().out
    assert (out / POINTER).is_file()


def test_a_re_ranker_comes_along(sealed, tiny_job, tmp_path):
    base = add_reranker(Path(shutil.copytree(resolve(sealed), tmp_path / "base")))
    with opened(base, tmp_path / "state") as (engine, catalogue):
        catalogue.apply(some_changes(engine))
        live = [answer(engine, catalogue, text) for text in asked(tiny_job)]
    after = fold(base, tmp_path / "state", tmp_path / "out")
    depths = [point.params.get("rerank_depth", 0) for point in verify(after).operating_points]
    assert depths == [0 if name == "fast" else DEPTH for name in engine.efforts]
    with opened(after, tmp_path / "state") as (engine, catalogue):
        for text, before in zip(asked(tiny_job), live, strict=True):
            now = answer(engine, catalogue, text)
            np.testing.assert_allclose([s for _, s in now], [s for _, s in before], atol=2e-2)


def test_nothing_to_fold_is_said(folded, sealed, tmp_path):
    after, state, *_ = folded
    with pytest.raises(FoldError, match="does not hold already"):
        fold(after, state, tmp_path)
    with pytest.raises(FoldError, match="ASTROLABE_STATE_DIR"):
        fold(sealed, tmp_path / "nowhere", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_learned_kinds_refuse(sealed, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(sealed, copy)
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["index"]["metric"] = "probability"
    seal(copy, manifest)
    with pytest.raises(FoldError, match="learned together with its labels"):
        fold(copy, tmp_path, tmp_path)


def test_other_data_than_the_bundles_is_refused(folded, sealed, tmp_path):
    _, state, *_ = folded
    sample = Path(__file__).resolve().parents[3] / "models" / "samples" / "gutenberg-lcsh"
    with pytest.raises(FoldError, match="--data"):
        fold(sealed, state, tmp_path, sample)
    store = SqliteStore(store_path(state, read_manifest(sealed).name), read_manifest(sealed).name)
    assert sealed.name not in store.folds()
    store.close()

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from service.bundle.manifest import MANIFEST
from service.bundle.verify import verify
from service.core.engine import Engine
from service.core.index.augmented import Blend
from service.core.index.faiss_index import open_faiss
from service.core.index.memory_labels import open_memory_labels
from service.core.parts import open_index
from service.core.types import Hits, Query
from service.errors import (
    BundleError,
    BundleMismatch,
    DeviceUnavailable,
    FileCorrupt,
    GoldenMismatch,
    ManifestInvalid,
)
from tests.support.memories import assert_same_hits, plain_blend
from tests.support.tiny_bundle import DIM, GOLDEN_QUERIES, N_LABELS, seal, write_tiny_bundle

TEXTS = ["the white whale", "rome", "", "song and dance " * 9, "moon light", "castle of the king"]


@pytest.fixture(scope="module")
def engine(tiny_bundle: Path) -> Engine:
    return Engine.open(tiny_bundle, device="cpu")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny")


def reseal(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda _: None) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    seal(folder, manifest)


def ask(engine: Engine, texts: list[str], k: int = 5, effort: str = "exact") -> list[Any]:
    predictions = engine.predict([Query(text, k, effort) for text in texts]).predictions
    return [(p.rows.tolist(), p.scores.tolist(), p.truncated) for p in predictions]


def test_best_label_is_the_one_that_shares_words(engine: Engine) -> None:
    answer = engine.predict([Query("garden history", 3, "exact")]).predictions[0]
    assert engine.labels[int(answer.rows[0])].text == "garden history"


def test_batched_equals_one_by_one(engine: Engine) -> None:
    together = ask(engine, TEXTS)
    apart = [ask(engine, [text])[0] for text in TEXTS]
    assert [rows for rows, _, _ in together] == [rows for rows, _, _ in apart]
    np.testing.assert_allclose([s for _, s, _ in together], [s for _, s, _ in apart], atol=1e-6)


def test_token_budget_changes_no_answer(tiny_bundle: Path, engine: Engine) -> None:
    narrow = Engine.open(tiny_bundle, device="cpu", max_batch_tokens=32)
    assert [rows for rows, _, _ in ask(narrow, TEXTS)] == [r for r, _, _ in ask(engine, TEXTS)]


def test_queries_with_different_k_and_effort_share_a_batch(engine: Engine) -> None:
    efforts = engine.efforts
    queries = [Query("whale", k, effort) for k, effort in itertools.product((1, 4), efforts)]
    predictions = engine.predict(queries).predictions
    assert [len(p.rows) for p in predictions] == [query.k for query in queries]
    assert len({int(p.rows[0]) for p in predictions}) == 1


def test_truncation_is_reported_for_the_text_that_was_cut(engine: Engine) -> None:
    assert [cut for _, _, cut in ask(engine, ["whale " * 99, "whale"])] == [True, False]


def test_served_scores_are_calibrated(engine: Engine, tiny_flat_bundle: Path) -> None:
    raw = Engine.open(tiny_flat_bundle, device="cpu")
    assert (engine.calibration.score_kind, raw.calibration.score_kind) == ("probability", "logit")
    served, plain = ask(engine, ["whale"])[0], ask(raw, ["whale"])[0]
    assert served[0] == plain[0]
    assert all(0 <= score <= 0.95 for score in served[1])


def test_timings_count_tokens_and_use_the_clock_given(tiny_bundle: Path) -> None:
    ticks = itertools.count()
    opened = Engine.open(tiny_bundle, device="cpu")
    fields = {name: getattr(opened, name) for name in Engine.__slots__}
    ticking = Engine(**(fields | {"clock": lambda: float(next(ticks))}))
    timings = ticking.predict([Query("whale sea", 1, "fast"), Query("", 1, "fast")]).timings
    assert (timings.tokenize_s, timings.encode_s, timings.search_s) == (1.0, 1.0, 1.0)
    assert (timings.n_tokens, timings.n_padded_tokens) == (4, 6)


def test_no_queries_give_no_predictions(engine: Engine) -> None:
    assert engine.predict([]).predictions == []


def test_golden_queries_are_recorded_and_replayed(engine: Engine) -> None:
    assert [item.query for item in engine.manifest.golden] == list(GOLDEN_QUERIES)
    engine.replay_golden()


def test_golden_score_that_moved_is_refused(bundle: Path) -> None:
    reseal(bundle, lambda m: m["golden"][1]["scores"].__setitem__(0, 0.01))
    with pytest.raises(GoldenMismatch, match=GOLDEN_QUERIES[1]):
        Engine.open(bundle, device="cpu")


def test_golden_label_that_changed_is_refused(bundle: Path) -> None:
    reseal(bundle, lambda m: m["golden"][0]["label_ids"].__setitem__(0, "L999"))
    with pytest.raises(GoldenMismatch, match=GOLDEN_QUERIES[0]):
        Engine.open(bundle, device="cpu")


def test_tampered_file_never_reaches_the_runtime(bundle: Path) -> None:
    (bundle / "index.hnsw.faiss").write_bytes(b"evil")
    with pytest.raises(FileCorrupt, match=r"index\.hnsw\.faiss"):
        Engine.open(bundle, device="cpu")


def test_cuda_asked_for_without_one_is_refused(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceUnavailable):
        Engine.open(tiny_bundle, device="cuda")


def write_index(folder: Path, dim: int, n_rows: int, metric: int = 0) -> None:
    index = faiss.IndexFlat(dim, metric)
    index.add(np.eye(n_rows, dim, dtype=np.float32))
    faiss.write_index(index, str(folder / "index.hnsw.faiss"))


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (lambda f: write_index(f, DIM + 1, 50), BundleMismatch, r"index\.hnsw.* 50 of 16"),
        (lambda f: write_index(f, DIM, 49), BundleMismatch, r"holds 49 vectors"),
        (lambda f: write_index(f, DIM, 50, metric=1), BundleMismatch, "'IxF2' at byte 0"),
        (
            lambda f: (f / "index.hnsw.faiss").write_bytes(b"IxFI" + b"nonsense" * 999),
            BundleMismatch,
            r"index\.hnsw\.faiss is not an index",
        ),
        (lambda f: (f / "tokenizer.json").write_text("{}"), ManifestInvalid, r"tokenizer\.json"),
        (lambda f: (f / "calibration.json").write_text("{}"), ManifestInvalid, "calibration"),
    ],
)
def test_parts_sealed_together_that_do_not_fit_are_refused(
    bundle: Path, damage: Callable[[Path], Any], error: type[Exception], words: str
) -> None:
    damage(bundle)
    reseal(bundle)
    with pytest.raises(error, match=words):
        Engine.open(bundle, device="cpu")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["encoder"].update(dim=8), "vectors of 16, the manifest says encoder.dim 8"),
        (lambda m: m["text"].update(version=99), "text cleaning astrolabe-text 99"),
        (lambda m: m["index"].update(kind="quantum"), "quantum"),
        (lambda m: m["index"].update(kind="flat"), "of kind hnsw, the manifest says index.kind fl"),
        (
            lambda m: (m["labels"].update(n_labels=51), m["index"].update(n_rows=51)),
            "holds 50 labels, the manifest says 51",
        ),
    ],
)
def test_manifest_that_does_not_fit_the_parts_is_refused(
    bundle: Path, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    reseal(bundle, change)
    with pytest.raises(BundleMismatch, match=words):
        Engine.open(bundle, device="cpu")


def test_an_engine_with_a_memory_answers_as_the_slow_twin(tiny_memory_bundle: Path) -> None:
    engine = Engine.open(tiny_memory_bundle, device="cpu")
    info = engine.manifest.memory
    assert info is not None
    predictions = engine.predict([Query(text, 10, "balanced") for text in TEXTS]).predictions
    embeddings = np.stack([prediction.embedding for prediction in predictions])
    efforts = {"labels": {"ef_search": 24}, "memory": {"ef_search": 32}}
    files = [tiny_memory_bundle / name for name in info.files]
    labels = open_faiss(tiny_memory_bundle / "index.hnsw.faiss", DIM, N_LABELS, efforts)
    memory = open_faiss(files[0], DIM, info.n_rows, efforts)
    settings = Blend(info.weight, info.temperature, info.neighbours, info.depth, info.logit_bias)
    expected = plain_blend(
        labels.search(embeddings, info.depth, "labels"),
        memory.search(embeddings, info.neighbours, "memory"),
        open_memory_labels(files[1:], info.n_rows, N_LABELS),
        settings,
        k=10,
    )
    rows = np.stack([prediction.rows for prediction in predictions])
    scores = np.stack([prediction.scores for prediction in predictions])
    assert_same_hits(Hits(rows, scores), expected)
    assert engine.calibration.score_kind == "probability"


def test_a_memory_is_wired_in_only_where_the_manifest_has_one(
    tiny_bundle: Path, tiny_memory_bundle: Path
) -> None:
    kinds = [open_index(f, verify(f)).kind for f in (tiny_bundle, tiny_memory_bundle)]
    assert kinds == ["hnsw", "augmented"]


def test_an_effort_without_memory_ef_search_scans_the_memory(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "tiny", memory=True)
    exact = ask(Engine.open(folder, device="cpu"), TEXTS, effort="exact")
    reseal(folder, lambda m: m["operating_points"][0].update(params={}))
    assert ask(Engine.open(folder, device="cpu"), TEXTS, effort="fast") == exact


@pytest.mark.parametrize(
    ("damage", "change", "words"),
    [
        (lambda f: None, lambda m: m["memory"].update(kind="flat"), "of kind hnsw, .* flat"),
        (lambda f: None, lambda m: m["memory"].update(n_rows=39), r"memory\.faiss holds 40 vec"),
        (
            lambda f: np.save(f / "memory.labels.npy", np.full(60, 50, np.int32)),
            lambda m: None,
            r"memory\.labels\.npy names label rows 50 to 50, the index has 50",
        ),
    ],
)
def test_memory_that_does_not_fit_the_labels_is_refused(
    tmp_path: Path,
    damage: Callable[[Path], Any],
    change: Callable[[dict[str, Any]], Any],
    words: str,
) -> None:
    folder = write_tiny_bundle(tmp_path / "tiny", memory=True)
    damage(folder)
    reseal(folder, change)
    with pytest.raises(BundleMismatch, match=words):
        Engine.open(folder, device="cpu")


def test_a_tokenizer_that_panics_is_a_bundle_error(tiny_flat_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_flat_bundle, tmp_path / "copy"))
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["post_processor"]["special_tokens"] = {}  # which its template asks for
    path.write_text(json.dumps(tokenizer))
    seal(folder, json.loads((folder / MANIFEST).read_text()))
    with pytest.raises(BundleError):
        Engine.open(folder, device="cpu")


def test_k_of_zero_gives_the_embedding_and_searches_nothing(engine: Engine) -> None:
    only, both = engine.predict(
        [Query("the white whale", 0, "fast"), Query("the white whale", 3, "fast")]
    ).predictions
    assert (len(only.rows), len(only.scores)) == (0, 0)
    assert np.array_equal(only.embedding, both.embedding)
    assert len(both.rows) == 3

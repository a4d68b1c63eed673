"""What is left out for an item: the store, its files when broken, and answers without it."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.bundle.manifest import MANIFEST
from service.bundle.verify import read_manifest
from service.core.engine import Engine
from service.core.labels.item_filter import (
    ITEMS_FILE,
    ROWS_FILE,
    STARTS_FILE,
    ItemFilter,
    write_item_filter,
)
from service.core.types import Prediction, Query
from service.errors import BundleMismatch, ManifestInvalid
from tests.support.tiny_bundle import N_LABELS, RECIPROCAL, seal, write_filtered_bundle

TEXT = "garden history"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert write_item_filter(tmp_path, ["b", "a", "b", "ü", "b"], np.array([4, 0, 2, 9, 4])) == (
        3,
        4,
    )
    return tmp_path


@pytest.fixture
def filtered(tiny_bundle: Path, tmp_path: Path) -> Path:
    return write_filtered_bundle(tiny_bundle, tmp_path / "filtered")


@pytest.fixture
def engine(filtered: Path) -> Engine:
    return Engine.open(filtered, device="cpu")


def answer(engine: Engine, item_id: str | None, k: int = 5, effort: str = "exact") -> Prediction:
    return engine.predict([Query(TEXT, k, effort, item_id)]).predictions[0]


def test_rows_come_back_by_item_once_each_and_rising(folder: Path) -> None:
    found = ItemFilter(folder, 10)
    rows = {item: found.rows_for(item).tolist() for item in ("a", "b", "ü", "c", "")}
    assert rows == {"a": [0], "b": [2, 4], "ü": [9], "c": [], "": []}
    assert (len(found), found.n_pairs) == (3, 4)
    assert found.rows_for("b").dtype == np.int64


def test_a_hundred_thousand_items_agree_with_a_dict(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    numbers, rows = rng.integers(0, 50_000, 100_000), rng.integers(0, 999, 100_000)
    write_item_filter(tmp_path, [f"item-{number}" for number in numbers], rows)
    expected: dict[int, set[int]] = {}
    for number, row in zip(numbers.tolist(), rows.tolist(), strict=True):
        expected.setdefault(number, set()).add(row)
    found = ItemFilter(tmp_path, 999)
    assert len(found) == len(expected)
    for number in range(0, 50_000, 50):
        assert found.rows_for(f"item-{number}").tolist() == sorted(expected.get(number, ()))


def test_ids_and_rows_must_go_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 item ids for 1 rows"):
        write_item_filter(tmp_path, ["a", "b"], np.array([1]))


def items(*values: int) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    return np.array(values, np.uint64)


def numbers(*values: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        (ITEMS_FILE, items(3, 2, 1), "do not rise"),
        (ITEMS_FILE, items(1, 1, 2), "do not rise"),
        (ITEMS_FILE, items(1, 2), "does not describe 2 items"),
        (ITEMS_FILE, numbers(1, 2, 3), "expected a list of uint64"),
        (STARTS_FILE, numbers(0, 1, 3, 3), r"does not describe 3 items .* with 4 rows"),
        (STARTS_FILE, numbers(1, 1, 3, 4), "does not describe"),
        (STARTS_FILE, numbers(0, 3, 1, 4), "does not describe"),
        (STARTS_FILE, numbers(), "does not describe"),
        (STARTS_FILE, numbers(0, 1, 3, 4).astype(np.float64), "expected a list of int64"),
        (ROWS_FILE, numbers(0, 2, 4, 10), "outside the 10 labels"),
        (ROWS_FILE, numbers(-1, 2, 4, 9), "outside the 10 labels"),
        (ROWS_FILE, numbers(0, 2, 4, 9).reshape(2, 2), "expected a list of int64"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(
    folder: Path, name: str, array: Any, words: str
) -> None:
    np.save(folder / name, array)
    with pytest.raises(BundleMismatch, match=words) as refusal:
        ItemFilter(folder, 10)
    assert name in refusal.value.detail


@pytest.mark.parametrize("name", [ITEMS_FILE, STARTS_FILE, ROWS_FILE])
@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04", b"\x93NUMPY", b"junk" * 99])
def test_files_that_are_no_arrays_are_refused_by_name(
    folder: Path, name: str, content: bytes | None
) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(BundleMismatch, match=name):
        ItemFilter(folder, 10)


def test_pickled_objects_are_refused(folder: Path) -> None:
    np.save(folder / ROWS_FILE, np.array([{}, [], None, 0], object), allow_pickle=True)
    with pytest.raises(BundleMismatch, match=ROWS_FILE):
        ItemFilter(folder, 10)


def test_a_cut_file_is_refused(folder: Path) -> None:
    whole = (folder / ROWS_FILE).read_bytes()
    (folder / ROWS_FILE).write_bytes(whole[:-8])
    with pytest.raises(BundleMismatch, match=ROWS_FILE):
        ItemFilter(folder, 10)


def test_a_bundle_without_the_section_opens_without_a_filter(tiny_bundle: Path) -> None:
    assert "filter" not in json.loads((tiny_bundle / MANIFEST).read_text())
    assert Engine.open(tiny_bundle, device="cpu").item_filter is None


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"n_items": 1}, BundleMismatch, "holds 52 items with 55 rows, the manifest says 1 with"),
        ({"n_pairs": 1}, BundleMismatch, "the manifest says 52 with 1"),
        ({"files": ["gone.npy"]}, ManifestInvalid, "gone.npy"),
        ({"surprise": 1}, ManifestInvalid, "filter.surprise"),
        ({"own_item": "yes"}, ManifestInvalid, "filter.own_item"),
    ],
)
def test_a_section_that_does_not_fit_is_refused(
    filtered: Path, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    manifest = json.loads((filtered / MANIFEST).read_text())
    manifest["filter"].update(change)
    seal(filtered, manifest)
    with pytest.raises(error, match=words):
        Engine.open(filtered, device="cpu")


def test_files_that_do_not_fit_the_labels_keep_a_bundle_from_opening(filtered: Path) -> None:
    np.save(filtered / ROWS_FILE, np.full(55, N_LABELS))
    seal(filtered, json.loads((filtered / MANIFEST).read_text()))
    with pytest.raises(BundleMismatch, match="outside the 50 labels"):
        Engine.open(filtered, device="cpu")


@pytest.mark.parametrize("effort", ["fast", "balanced", "thorough", "exact"])
def test_an_item_is_left_out_of_its_own_answer_and_the_rest_moves_up(
    engine: Engine, effort: str
) -> None:
    plain = answer(engine, None, k=6, effort=effort)
    own = engine.labels[int(plain.rows[0])].label_id
    found = answer(engine, own, k=5, effort=effort)
    left = [
        (row, score)
        for row, score in zip(plain.rows.tolist(), plain.scores.tolist(), strict=True)
        if row not in (plain.rows[0], *RECIPROCAL.get(own, ()))
    ]
    assert list(zip(found.rows.tolist(), found.scores.tolist(), strict=True)) == left[:5]
    assert len(found.rows) == 5


def test_filtering_equals_its_slow_twin_for_every_item(engine: Engine) -> None:
    everything = answer(engine, None, k=N_LABELS)
    for item in (*RECIPROCAL, *(f"L{row:03d}" for row in range(N_LABELS))):
        hidden = {*RECIPROCAL.get(item, ()), *([int(item[1:])] if item[0] == "L" else [])}
        kept = [row for row in everything.rows.tolist() if row not in hidden]
        assert answer(engine, item, k=7).rows.tolist() == kept[:7], item


def test_fewer_come_where_the_index_holds_fewer(engine: Engine) -> None:
    found = answer(engine, "P1", k=N_LABELS)
    assert len(found.rows) == len(found.scores) == N_LABELS - 3


@pytest.mark.parametrize("effort", ["fast", "exact"])
def test_an_unknown_item_gets_the_answer_of_none(engine: Engine, effort: str) -> None:
    found, plain = answer(engine, "unheard of", effort=effort), answer(engine, None, effort=effort)
    assert found.rows.tolist() == plain.rows.tolist()
    assert found.scores.tolist() == plain.scores.tolist()


def test_answers_do_not_depend_on_the_batch(engine: Engine) -> None:
    queries = [
        Query(text, k, effort, item)
        for text in (TEXT, "the white whale", "")
        for k in (1, 4)
        for effort in ("fast", "exact")
        for item in (None, "P1", "P2", "L004", "unheard of")
    ]
    together = engine.predict(queries).predictions
    for query, found in zip(queries, together, strict=True):
        alone = engine.predict([query]).predictions[0]
        assert found.rows.tolist() == alone.rows.tolist(), query
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-6)


def test_threads_share_a_filter(engine: Engine) -> None:
    expected = answer(engine, "P1").rows.tolist()
    found: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: found.append(answer(engine, "P1").rows.tolist()))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8


def test_an_item_where_there_is_no_filter_is_an_error(engine: Engine) -> None:
    bare = replace(engine, item_filter=None)
    with pytest.raises(ValueError, match="'P1', this bundle has no item filter"):
        answer(bare, "P1")


def test_the_manifest_counts_items_and_pairs(filtered: Path) -> None:
    info = read_manifest(filtered).filter
    assert info is not None
    assert (info.own_item, info.n_items, info.n_pairs) == (True, 52, 55)


def watched(calls: list[int], search: Callable[..., Any]) -> Callable[..., Any]:
    def searching(queries: Any, k: int, effort: str) -> Any:
        calls.append(k)
        return search(queries, k, effort)

    return searching


def test_the_index_is_asked_for_as_many_more_as_are_left_out(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(engine.index, "search", watched(calls, engine.index.search), raising=True)
    engine.predict([Query(TEXT, 5, "exact", item) for item in (None, "unheard of", "P2", "P1")])
    assert calls == [5, 6, 8]

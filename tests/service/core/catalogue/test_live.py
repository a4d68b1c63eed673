"""A changed catalogue answers as a bundle sealed with the same labels would."""

import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.manifest import EXACT
from service.core.catalogue.changes import Change
from service.core.catalogue.live import LiveCatalogue
from service.core.catalogue.sqlite_store import SqliteStore, store_path
from service.core.engine import Engine
from service.core.index.faiss_index import FaissIndex
from service.core.types import Hits
from service.errors import (
    CatalogueUnavailable,
    DeadlineExceeded,
    LabelExists,
    LabelUnknown,
    PayloadTooLarge,
)
from tests.support.shop import add, answer, catalogue_of, embed, ids_of, opened
from tests.support.tiny_bundle import N_LABELS, WORDS, write_tiny_bundle

ROOT = Path(__file__).resolve().parents[4]
NAMES = [f"L{row:03d}" for row in range(0, N_LABELS, 5)] + [f"new{i}" for i in range(8)]


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("flat") / "b", kind="flat")


@pytest.fixture(scope="module")
def engine(flat):
    return Engine.open(flat, device="cpu")


@pytest.fixture(scope="module")
def with_memory(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("memory") / "b", kind="hnsw", memory=True)


def test_without_a_change_it_is_the_bundles_own_search(engine, flat, monkeypatch):
    catalogue = catalogue_of(engine, None)
    asked = embed(engine, ["whale"])
    found = object()
    monkeypatch.setattr(FaissIndex, "search", lambda *_: found)
    assert catalogue.search(asked, 3, EXACT) is found
    assert catalogue.label(4) is engine.labels[4]
    assert (catalogue.n_rows, catalogue.n_delta, catalogue.n_tombstones) == (N_LABELS, 0, 0)


def test_without_a_place_to_keep_them_changes_are_refused(engine, flat):
    catalogue = catalogue_of(engine, None)
    with pytest.raises(CatalogueUnavailable, match="ASTROLABE_STATE_DIR"):
        catalogue.apply([add("a", "whale")])
    assert not catalogue.poll()


def test_an_added_label_is_found_by_its_text_and_a_removed_one_no_more(flat, tmp_path):
    with opened(flat, tmp_path) as (engine, catalogue):
        gone = ids_of(engine, catalogue, "rome empire")[0]
        applied = catalogue.apply([add("new", "rome empire poem", year=80), Change("remove", gone)])
        assert (applied.n_added, applied.n_removed, applied.n_labels) == (1, 1, N_LABELS)
        found = ids_of(engine, catalogue, "rome empire", k=N_LABELS + 5)
        assert found[0] == "new"
        assert gone not in found
        assert len(found) == N_LABELS == catalogue.n_rows
        assert catalogue.label(catalogue.row_of("new")).metadata == {"year": 80}
        assert catalogue.row_of(gone) is None


def test_metadata_alone_leaves_the_trained_vector_in_place(flat, tmp_path):
    with opened(flat, tmp_path) as (engine, catalogue):
        before = answer(engine, catalogue, "star moon")
        catalogue.apply([Change("update", before[0][0], metadata={"new": True})])
        assert answer(engine, catalogue, "star moon") == before
        row = catalogue.row_of(before[0][0])
        assert row < N_LABELS
        assert catalogue.label(row).metadata == {"new": True}


def test_a_text_put_back_has_its_trained_vector_again(flat, tmp_path):
    with opened(flat, tmp_path) as (engine, catalogue):
        before = answer(engine, catalogue, "star moon")
        own = engine.labels[7]
        catalogue.apply([Change("update", own.label_id, text="star moon")])
        assert answer(engine, catalogue, "star moon") != before
        catalogue.apply([Change("update", own.label_id, text=own.text)])
        assert answer(engine, catalogue, "star moon") == before
        assert (catalogue.n_delta, catalogue.n_tombstones) == (0, 0)


def test_a_row_of_an_older_search_keeps_its_label(flat, tmp_path):
    with opened(flat, tmp_path) as (_, catalogue):
        catalogue.apply([add("new", "rome empire")])
        row = catalogue.row_of("new")
        catalogue.apply([Change("remove", "new")])
        catalogue.apply([add("new", "star moon")])
        assert catalogue.label(row).text == "rome empire"
        assert catalogue.row_of("new") != row


def test_removing_everything_leaves_empty_answers(flat, tmp_path):
    with opened(flat, tmp_path) as (engine, catalogue):
        catalogue.apply([Change("remove", f"L{row:03d}") for row in range(N_LABELS)])
        assert answer(engine, catalogue, "whale") == []
        catalogue.apply([add("only", "whale")])
        assert ids_of(engine, catalogue, "garden") == ["only"]


def test_scores_of_a_bundle_with_a_memory_stay_probabilities(with_memory, tmp_path):
    with opened(with_memory, tmp_path) as (engine, catalogue):
        catalogue.apply([add(f"n{i}", word) for i, word in enumerate(WORDS)])
        for text in WORDS[:10]:
            found = answer(engine, catalogue, text, k=20)
            scores = [score for _, score in found]
            assert sorted(scores, reverse=True) == scores
            assert 0 <= scores[-1] <= scores[0] <= 1
            assert f"n{WORDS.index(text)}" in [name for name, _ in found]


def test_an_answer_does_not_depend_on_its_batch(flat, tmp_path):
    with opened(flat, tmp_path) as (engine, catalogue):
        catalogue.apply(
            [Change("remove", f"L{row:03d}") for row in range(0, 40)]
            + [add(f"n{i}", f"{word} {WORDS[i - 3]}") for i, word in enumerate(WORDS)]
        )
        queries = embed(engine, [f"{word} {WORDS[-i]}" for i, word in enumerate(WORDS)])
        together = catalogue.search(queries, 9, EXACT)
        for i, query in enumerate(queries):
            alone = catalogue.search(query[None], 9, EXACT)
            assert (alone.rows[0] == together.rows[i]).all()
            assert (alone.scores[0] == together.scores[i]).all()
        empty = catalogue.search(queries[:0], 9, EXACT)
        assert empty.rows.shape == empty.scores.shape == (0, 9)
        queries[0, 0] = np.nan
        with pytest.raises(ValueError, match="NaN"):
            catalogue.search(queries, 9, EXACT)


class Reference:
    """The same labels by hand: a dictionary, and a flat index built from scratch."""

    def __init__(self, engine: Engine, scale: float) -> None:
        self.engine, self.scale = engine, scale
        self.base = {engine.labels[row].label_id: row for row in range(N_LABELS)}
        self.labels = {
            name: (engine.labels[row].text, engine.labels[row].metadata)
            for name, row in self.base.items()
        }

    def change(self, change: Change) -> bool:
        known = change.label_id in self.labels
        if known == (change.op == "add"):
            return False
        if change.op == "remove":
            del self.labels[change.label_id]
            return True
        text, metadata = self.labels.get(change.label_id, ("", {}))
        self.labels[change.label_id] = (
            text if change.text is None else change.text,
            metadata if change.metadata is None else change.metadata,
        )
        return True

    def search(self, queries: np.ndarray, k: int) -> list[dict[str, float]]:
        names = list(self.labels)
        vectors = embed(self.engine, [text for text, _ in self.labels.values()]) * self.scale
        for place, name in enumerate(names):
            row = self.base.get(name)
            if row is not None and self.engine.labels[row].text == self.labels[name][0]:
                vectors[place] = self.engine.index.vectors(np.array([row]))[0]
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        hits = FaissIndex(index, {EXACT: {}}).search(queries, k, EXACT)
        return [
            {names[row]: score for row, score in zip(rows, scores, strict=True)}
            for rows, scores in zip(hits.rows, hits.scores.tolist(), strict=True)
        ]

    def names_where(self, field: str, values: list[object]) -> set[str]:
        def has(metadata: dict[str, object]) -> bool:
            held = metadata.get(field)
            held = held if isinstance(held, list) else [held]
            return any(type(a) is type(b) and a == b for a in held for b in values)

        return {name for name, (_, metadata) in self.labels.items() if has(metadata)}


words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)
metadata = st.dictionaries(
    st.sampled_from(["shelf", "tags"]),
    st.one_of(st.integers(0, 3), st.booleans(), st.lists(st.sampled_from("ab"), max_size=2)),
    max_size=2,
)
changes = st.one_of(
    st.builds(Change, st.just("add"), st.sampled_from(NAMES), words, metadata),
    st.builds(
        Change, st.just("update"), st.sampled_from(NAMES), st.none() | words, st.none() | metadata
    ),
    st.builds(Change, st.just("remove"), st.sampled_from(NAMES)),
)


@settings(max_examples=60, deadline=None)
@given(calls=st.lists(st.lists(changes, max_size=4), max_size=8), k=st.integers(1, 70))
def test_a_changed_bundle_answers_as_one_built_from_scratch(flat, engine, calls, k):
    queries = embed(engine, ["whale sea", "rome", "a rose", "star moon planet", "zzz"])
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(store_path(Path(folder), "tiny"), "tiny")
        catalogue = catalogue_of(engine, store)
        reference = Reference(engine, catalogue._placement.scale)
        for call in calls:
            kept = [change for change in call if reference.change(change)]
            catalogue.apply(kept)
        again = catalogue_of(engine, store)
        store.close()
    expected = reference.search(queries, k)
    for each in (catalogue, again):
        assert each.n_rows == len(reference.labels)
        check_same(each, each.search(queries, k, EXACT), expected)
        for name in NAMES:
            row = each.row_of(name)
            assert (row is not None) == (name in reference.labels)
            if row is not None:
                label = each.label(row)
                assert (label.text, label.metadata) == reference.labels[name]
        for field, values in (("shelf", [1, 3]), ("shelf", [True]), ("tags", ["a"])):
            rows = each.rows_where({field: values})
            assert (np.diff(rows) > 0).all()
            found = {each.label(int(row)).label_id for row in rows}
            assert found == reference.names_where(field, values)


def check_same(catalogue: LiveCatalogue, hits: Hits, expected: list[dict[str, float]]) -> None:
    for rows, scores, wanted in zip(hits.rows, hits.scores, expected, strict=True):
        found = {catalogue.label(int(row)).label_id: s for row, s in zip(rows, scores, strict=True)}
        assert len(found) == len(rows) == len(wanted)
        assert (np.diff(scores) <= 0).all()
        np.testing.assert_allclose(sorted(scores), sorted(wanted.values()), atol=1e-5)
        last = min(wanted.values(), default=0.0)
        # labels that tie with the last one may be others
        sure = {name for name, score in wanted.items() if score > last + 1e-5}
        assert sure <= set(found)


def test_a_closed_catalogue_searches_on_and_polls_for_nothing(flat, tmp_path):
    with opened(flat, tmp_path) as (engine, catalogue):
        catalogue.apply([add("n1", "whale opera")])
        catalogue.close()
        assert not catalogue.poll()
        assert "n1" in [name for name, _ in answer(engine, catalogue, "whale opera", k=5)]


def test_metadata_that_python_takes_for_the_same_is_another(flat, tmp_path):
    with opened(flat, tmp_path) as (engine, catalogue):
        assert engine.labels[15].metadata == {"shelf": 1}
        catalogue.apply([Change("update", "L015", None, {"shelf": True})])
        assert catalogue.label(15).metadata["shelf"] is True
        assert 15 in catalogue.rows_where({"shelf": True})
        assert 15 not in catalogue.rows_where({"shelf": 1})


def test_each_process_sees_what_the_other_changed(flat, tmp_path):
    with opened(flat, tmp_path) as (engine, catalogue):
        other = (
            "from pathlib import Path\n"
            "from tests.support.shop import add, opened, ids_of\n"
            f"with opened(Path({str(flat)!r}), Path({str(tmp_path)!r})) as (engine, catalogue):\n"
            "    print(ids_of(engine, catalogue, 'rome empire')[0], flush=True)\n"
            "    catalogue.apply([add('theirs', 'star moon')])\n"
        )
        catalogue.apply([add("ours", "rome empire")])
        done = subprocess.run(
            [sys.executable, "-c", other], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.stdout.strip() == "ours", done.stderr
        assert "theirs" not in ids_of(engine, catalogue, "star moon")
        assert catalogue.poll()
        assert ids_of(engine, catalogue, "star moon")[0] == "theirs"
        assert not catalogue.poll()


def test_two_writers_never_disagree_on_what_exists(flat, tmp_path):
    with opened(flat, tmp_path) as (engine, one), opened(flat, tmp_path) as (_, two):
        one.apply([add("a", "rome")])
        with pytest.raises(LabelExists):
            two.apply([add("a", "star")])
        two.apply([Change("remove", "a")])
        with pytest.raises(LabelUnknown):
            one.apply([Change("update", "a", text="x")])
        one.apply([add("a", "moon")])
        assert two.poll()
        assert answer(engine, one, "moon") == answer(engine, two, "moon")


def refuse(store: SqliteStore, seq: int) -> None:
    raise CatalogueUnavailable("the disk is away")


def test_what_could_not_be_taken_over_is_tried_again(flat, tmp_path, monkeypatch):
    with opened(flat, tmp_path) as (engine, one), opened(flat, tmp_path) as (_, two):
        one.apply([add("a", "rome empire")])
        with monkeypatch.context() as broken:
            broken.setattr(SqliteStore, "since", refuse)
            with pytest.raises(CatalogueUnavailable):
                two.poll()
        assert two.poll()
        assert ids_of(engine, two, "rome empire")[0] == "a"


def test_a_call_that_is_ended_before_it_writes_changes_nothing(flat, tmp_path, monkeypatch):
    monkeypatch.setattr("service.core.catalogue.live.ENCODED_AT_ONCE", 10)
    n_checks = 0

    def check() -> None:
        nonlocal n_checks
        n_checks += 1
        if n_checks == 4:  # one at the start, then one before each ten texts
            raise DeadlineExceeded("too late")

    with opened(flat, tmp_path) as (_, catalogue):
        changes = [add(f"n{i}", f"rome {i}") for i in range(40)]
        with pytest.raises(DeadlineExceeded):
            catalogue.apply(changes, check)
        assert (catalogue.n_rows, catalogue.seq) == (N_LABELS, 0)
        assert catalogue.apply(changes, lambda: None).n_labels == N_LABELS + 40
    with opened(flat, tmp_path) as (_, catalogue):
        assert (catalogue.n_rows, catalogue.seq) == (N_LABELS + 40, 40)


def test_metadata_of_one_label_is_bounded(flat, tmp_path):
    with opened(flat, tmp_path) as (_, catalogue):
        fits = Change("add", "fits", "rome", {"of": ["x"] * 16_000})
        catalogue.apply([fits])
        too_long = Change("add", "long", "rome", {"of": ["x"] * 17_000})
        with pytest.raises(PayloadTooLarge, match=r"changes\[1\]\.metadata has 68008 bytes"):
            catalogue.apply([Change("remove", "fits"), too_long])
        assert catalogue.row_of("fits") is not None


def test_a_restart_encodes_nothing_again(flat, tmp_path, monkeypatch):
    with opened(flat, tmp_path) as (engine, catalogue):
        catalogue.apply([add(f"n{i}", f"{word} sea") for i, word in enumerate(WORDS)])
        before = answer(engine, catalogue, "king")
    asked: list[int] = []

    def counted(tokenizer, encoder, texts, tokens):
        asked.append(len(texts))
        return embed(engine, texts)

    monkeypatch.setattr("service.core.catalogue.live.embed_texts", counted)
    with opened(flat, tmp_path) as (engine, catalogue):
        assert answer(engine, catalogue, "king") == before
    assert asked == [N_LABELS], "only the sample that the scale is measured on"


def test_searches_go_on_during_a_thousand_changes(flat, tmp_path):
    with opened(flat, tmp_path) as (engine, catalogue):
        queries = embed(engine, ["rome empire", "star moon", "whale"])
        stop = threading.Event()

        def search() -> int:
            done = 0
            while not stop.is_set():
                hits = catalogue.search(queries, 10, EXACT)
                assert hits.rows.shape == (3, 10)
                assert (np.diff(hits.scores) <= 0).all()
                assert all(len(set(rows)) == 10 for rows in hits.rows.tolist())
                for row in hits.rows.ravel().tolist():
                    assert catalogue.label(row).text
                done += 1
            return done

        with ThreadPoolExecutor(2) as pool:
            searching = [pool.submit(search) for _ in range(2)]
            try:
                for i in range(500):
                    catalogue.apply([add(f"n{i}", f"rome {WORDS[i % len(WORDS)]}", i=i % 3)])
                    old = f"n{i - 5}" if i >= 5 else f"L{i:03d}"
                    catalogue.apply([Change("remove", old)])
            finally:
                stop.set()
            assert sum(each.result() for each in searching) > 2
        assert catalogue.n_rows == N_LABELS
        assert {catalogue.label(int(row)).label_id for row in catalogue.rows_where({"i": 0})} == {
            "n495",
            "n498",
        }


def test_ids_become_rows_once_and_unknown_ones_are_named(flat, tmp_path):
    with opened(flat, tmp_path) as (_, catalogue):
        catalogue.apply([add("new", "rome"), Change("remove", "L003")])
        rows, unknown = catalogue.rows_of(["new", "L001", "new", "L003", "nobody"])
        assert rows.tolist() == [1, N_LABELS]
        assert unknown == ["L003", "nobody"]

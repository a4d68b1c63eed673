"""models.data.formats*: every file read back as written, every broken file named with its line."""

import gzip
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from models.data.dataset import LabelCatalogue, Points, report
from models.data.formats import open_dataset, write_dataset
from models.data.formats_jsonl import read_labels, read_points, write_labels, write_points
from models.data.formats_lines import write_lines
from models.data.formats_xc import (
    read_filter,
    write_filter,
)
from models.errors import DataError
from service.core.labels.label_id import fault_of_id
from tests.support.synthetic import synthetic_dataset

SAMPLE = Path(__file__).parents[3] / "models/samples/gutenberg-lcsh"
GOOD_POINT = '{"uid": "p", "title": "t", "target_ind": [0]}'

# tmp_path is shared by the examples of one test; each example writes over the files of the last.
roundtrip = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
ONES = st.just(1.0)
texts = st.text(st.characters(codec="utf-8"), max_size=12)


@st.composite
def matrices(draw, n_rows=None, values=ONES, dtype=np.float64):
    n_rows = draw(st.integers(1, 5)) if n_rows is None else n_rows
    n_columns = draw(st.integers(1, 6))
    columns = st.dictionaries(st.integers(0, n_columns - 1), values)
    rows = [draw(columns) for _ in range(n_rows)]
    ends = np.cumsum([0, *map(len, rows)])
    indices = np.array([column for row in rows for column in sorted(row)], dtype=np.int64)
    data = np.array([row[column] for row in rows for column in sorted(row)], dtype=dtype)
    return csr_array((data, indices, ends), shape=(n_rows, n_columns))


def assert_same_matrix(left, right):
    assert left.shape == right.shape
    assert left.indptr.tolist() == right.indptr.tolist()
    assert left.indices.tolist() == right.indices.tolist()
    assert left.data.tolist() == right.data.tolist()


def broken(read, path, line, expected, found=""):
    """Reads a file that must fail, and checks what the error names."""
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.path == path
    assert caught.value.line == line
    assert expected in caught.value.expected
    assert found in caught.value.found
    return caught.value


# ---- JSON lines


@roundtrip
@given(
    rows=st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=5),
    packed=st.booleans(),
    data=st.data(),
)
def test_points_and_labels_come_back_as_written(tmp_path, rows, packed, data):
    relevance = ONES | st.floats(0.125, 1024.0, width=32)
    matrix = data.draw(matrices(len(rows), relevance, np.float32))
    points = Points(*map(list, zip(*rows, strict=True)), matrix)
    uids = [f"{row} {uid}" for row, (uid, _, _) in enumerate(rows) if not fault_of_id(f"0 {uid}")]
    named = [rows[int(uid.split()[0])] for uid in uids]
    labels = LabelCatalogue(uids, [row[1] for row in named], [row[2] for row in named])
    ending = "jsonl.gz" if packed else "jsonl"
    write_points(tmp_path / f"trn.{ending}", points)
    write_labels(tmp_path / f"lbl.{ending}", labels)
    found = read_points(tmp_path / f"trn.{ending}", matrix.shape[1])
    assert (found.uids, found.titles, found.contents) == (
        points.uids,
        points.titles,
        points.contents,
    )
    assert_same_matrix(found.labels, matrix)
    assert found.labels.dtype == np.float32
    assert found.merged_targets == 0
    assert read_labels(tmp_path / f"lbl.{ending}") == labels


def test_a_point_may_have_no_uid(tmp_path):
    path = tmp_path / "trn.jsonl"
    path.write_text(
        '{"uid": "7", "title": "", "target_ind": []}\n'
        '{"title": "b", "content": null, "target_ind": [1], "more": {}}\n'
    )
    points = read_points(path, 2)
    assert points.uids == ["7", ""]
    assert points.contents == ["", ""]
    assert points.labels.toarray().tolist() == [[0, 0], [0, 1]]


def test_a_title_may_speak_of_a_uid(tmp_path):
    path = tmp_path / "trn.jsonl"
    path.write_text(json.dumps({"uid": "p", "title": '"uid"', "x": {"uid": 1}, "target_ind": []}))
    assert read_points(path, 1).titles == ['"uid"']


def test_crlf_and_a_missing_last_newline_are_legal(tmp_path):
    path = tmp_path / "trn.jsonl"
    path.write_bytes(f"{GOOD_POINT}\r\n{GOOD_POINT}".encode())
    assert len(read_points(path, 1)) == 2


def test_a_label_named_twice_is_merged_with_the_larger_relevance_and_counted(tmp_path):
    path = tmp_path / "trn.jsonl"
    record = {"uid": "p", "title": "t", "target_ind": [2, 0, 2], "target_rel": [0.5, 1, 2.5]}
    path.write_text(json.dumps(record))
    points = read_points(path, 3)
    assert points.merged_targets == 1
    assert points.labels.toarray().tolist() == [[1.0, 0.0, 2.5]]


def test_an_empty_file_has_no_points(tmp_path):
    (tmp_path / "trn.jsonl").touch()
    points = read_points(tmp_path / "trn.jsonl", 3)
    assert len(points) == 0
    assert points.labels.shape == (0, 3)


@pytest.mark.parametrize(
    ("line", "expected", "found"),
    [
        (b'{"uid": "p", "title', "one JSON object", "title"),
        (b"[1, 2]", "one JSON object", "[1, 2]"),
        (b'{"uid": "p", "title": NaN, "target_ind": []}', "one JSON object", "NaN"),
        (b'{"uid": "p", "title": "\xff", "target_ind": []}', "UTF-8", "\\xff"),
        (b"", "a line of data", "a blank line"),
        (b" \t", "a line of data", "a blank line"),
        (b'{"uid": "p", "target_ind": []}', 'a "title" that is text', 'no "title"'),
        (b'{"uid": "p", "title": null, "target_ind": []}', 'a "title"', "None"),
        (b'{"uid": "p", "title": 3, "target_ind": []}', 'a "title"', "3"),
        (b'{"uid": "p", "title": "", "content": [], "target_ind": []}', 'a "content"', "[]"),
        (b'{"uid": null, "title": "", "target_ind": []}', 'a "uid"', "None"),
        (b'{"uid": true, "title": "", "target_ind": []}', 'a "uid"', "True"),
        (b'{"uid": 7, "title": "", "target_ind": []}', 'a "uid" that is text, in quotes', "7"),
        (b'{"uid": "p", "uid": "q", "title": "", "target_ind": []}', 'one "uid"', '"q"'),
        (b'{"uid": 7.0, "title": "", "target_ind": []}', 'a "uid" that is text', "7.0"),
        (b'{"uid": "p", "title": ""}', "list of whole numbers", 'no "target_ind"'),
        (b'{"uid": "p", "title": "", "target_ind": 1}', "list of whole numbers", "1"),
        (b'{"uid": "p", "title": "", "target_ind": [1.0]}', "list of whole numbers", "1.0"),
        (b'{"uid": "p", "title": "", "target_ind": [true]}', "list of whole numbers", "True"),
        (b'{"uid": "p", "title": "", "target_ind": ["1"]}', "list of whole numbers", "'1'"),
        (b'{"uid": "p", "title": "", "target_ind": [0, 3]}', "from 0 to 2", "3"),
        (b'{"uid": "p", "title": "", "target_ind": [-1]}', "from 0 to 2", "-1"),
        (
            b'{"uid": "p", "title": "", "target_ind": [18446744073709551615]}',
            "from 0 to 2",
            "18446744073709551615",
        ),
    ],
)
def test_a_broken_line_is_named_with_what_was_expected(tmp_path, line, expected, found):
    path = tmp_path / "trn.jsonl"
    path.write_bytes(GOOD_POINT.encode() + b"\n" + line + b"\n" + GOOD_POINT.encode() + b"\n")
    broken(lambda path: read_points(path, 3), path, 2, expected, found)


@pytest.mark.parametrize(
    "values",
    ["3", "[1]", "[1, 1, 1]", '[1, "x"]', "[true, 1]", "[1, 0]", "[1, -1]", "[1, 1e300]"],
)
def test_relevance_must_be_one_positive_number_a_target(tmp_path, values):
    path = tmp_path / "trn.jsonl"
    targets = f'"target_ind": [0, 1], "target_rel": {values}'
    path.write_text(f'{{"uid": "p", "title": "t", {targets}}}')
    broken(lambda path: read_points(path, 2), path, 1, 'a "target_rel" of 2 numbers')


def test_a_label_without_an_id_is_refused(tmp_path):
    path = tmp_path / "lbl.jsonl"
    path.write_text('{"uid": "a", "title": "A"}\n{"title": "B"}\n')
    broken(read_labels, path, 2, 'a "uid"', 'no "uid"')


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("x", "x"),
        (" ", "a"),
        ("", "a"),
        ("a\nb", "a"),
        ("a\x00", "a"),
        ("a\x85", "a"),
        ("a\u2028b", "a"),
        (".", "a"),
        ("..", "a"),
        ("a/./b", "a"),
        ("../a", "a"),
        ("\u200b", "a"),
        ("x" * 1025, "a"),
    ],
)
def test_a_label_id_is_one_labels_alone_and_fits_its_route_or_is_refused(tmp_path, first, second):
    path = tmp_path / "lbl.jsonl"
    path.write_text("".join(json.dumps({"uid": uid, "title": "t"}) + "\n" for uid in "z" + "y"))
    with path.open("a") as file:
        for uid in (second, first):
            file.write(json.dumps({"uid": uid, "title": "t"}) + "\n")
    broken(read_labels, path, 4, 'a "uid"', "line 3" if first == second else repr(first)[:40])


@pytest.mark.parametrize(
    "ids",
    [
        ("x", "X", " x", "x ", "x\u00a0"),
        ("caf\u00e9", "cafe\u0301"),
        ("1", "01", "1.0", "1e0"),
        (
            "a/b",
            "/a/b",
            "a/b/",
            "a//b",
            "a%2Fb",
            "%2e%2e",
            "...",
            ".a",
            "a?b#c",
            "\u202e",
            "x" * 1024,
        ),
    ],
)
def test_ids_that_differ_by_a_letter_are_different_and_kept_as_they_are(tmp_path, ids):
    path = tmp_path / "lbl.jsonl"
    path.write_text("".join(json.dumps({"uid": uid, "title": "t"}) + "\n" for uid in ids))
    assert tuple(read_labels(path).uids) == ids


def test_long_findings_are_shortened(tmp_path):
    path = tmp_path / "lbl.jsonl"
    path.write_text("x" * 5000)
    message = str(broken(read_labels, path, 1, "one JSON object"))
    assert len(message) < len(str(path)) + 250
    assert "characters)" in message


# ---- files as such


def test_a_cut_gzip_file_is_named_with_the_line_it_broke_on(tmp_path):
    path = tmp_path / "trn.jsonl.gz"
    whole = gzip.compress(b"".join(f'{{"uid": "{i}", "title": "t"}}\n'.encode() for i in range(9)))
    path.write_bytes(whole[:-12])
    with pytest.raises(DataError, match=r"line \d+: expected a whole gzip file, found damage"):
        read_labels(path)


@pytest.mark.parametrize("content", [b"not gzip at all", b"\x1f\x8b\x08\x00" + b"\xff" * 40])
def test_a_file_that_only_claims_to_be_gzip_is_named(tmp_path, content):
    path = tmp_path / "lbl.jsonl.gz"
    path.write_bytes(content)
    broken(read_labels, path, 1, "a whole gzip file", "damage")


def test_a_missing_file_is_named(tmp_path):
    error = broken(read_labels, tmp_path / "lbl.jsonl", None, "a readable file", "No such file")
    assert str(error).startswith(str(tmp_path / "lbl.jsonl") + ": expected")


def test_the_error_survives_pickling():
    error = DataError(Path("f"), 3, "this", "that")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_the_same_lines_give_the_same_gzip_bytes_under_any_name(tmp_path):
    for name in ("a.gz", "b.gz"):
        write_lines(tmp_path / name, [b"one", b"two"])
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert (tmp_path / "a.gz").read_bytes()[4:8] == bytes(4)


@pytest.mark.parametrize("name", ["a.txt", "a.gz"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, name):
    def failing():
        yield b"new"
        raise RuntimeError("stop")

    write_lines(tmp_path / name, [b"old"])
    before = (tmp_path / name).read_bytes()
    with pytest.raises(RuntimeError, match="stop"):
        write_lines(tmp_path / name, failing())
    assert (tmp_path / name).read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_points_with_a_relevance_no_reader_takes_are_not_written(tmp_path, value):
    labels = csr_array((np.array([value], dtype=np.float32), [0], [0, 1]), shape=(1, 1))
    with pytest.raises(ValueError, match="drop stored zeros"):
        write_points(tmp_path / "trn.jsonl", Points(["p"], ["t"], [""], labels))
    assert not list(tmp_path.iterdir())


# ---- filter files


@roundtrip
@given(pairs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 8)), max_size=9))
def test_filter_pairs_come_back_as_written(tmp_path, pairs):
    array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    write_filter(tmp_path / "filter_labels_test.txt", array)
    found = read_filter(tmp_path / "filter_labels_test.txt", n_rows=7, n_labels=9)
    assert found.dtype == np.int64
    assert found.shape == (len(pairs), 2)
    assert found.tolist() == array.tolist()


@pytest.mark.parametrize("line", ["1", "1 2 3", "a b", "1.0 2", "7 0", "0 9", "-1 0", ""])
def test_a_broken_filter_line_is_named(tmp_path, line):
    path = tmp_path / "filter_labels_test.txt"
    path.write_text(f"0 0\n{line}\n0 1\n")
    broken(lambda path: read_filter(path, 7, 9), path, 2, "a")


# ---- folders


def test_a_data_set_comes_back_as_written(tmp_path):
    filters = {"train_filter": np.array([[3, 4]]), "test_filter": np.zeros((0, 2), np.int64)}
    dataset = replace(synthetic_dataset(20, 60, 10, seed=0), **filters)
    write_dataset(tmp_path / "made", dataset)
    found = open_dataset(tmp_path / "made")
    assert found.name == "made"
    assert found.labels == dataset.labels
    assert found.train.titles == dataset.train.titles
    assert_same_matrix(found.test.labels, dataset.test.labels)
    assert found.train_filter.tolist() == [[3, 4]]
    assert found.test_filter.shape == (0, 2)


def test_the_hash_follows_the_bytes_of_the_files(tmp_path):
    dataset = synthetic_dataset(5, 10, 0, seed=0)
    for name in ("a", "b"):
        write_dataset(tmp_path / name, dataset)
    first, second = open_dataset(tmp_path / "a"), open_dataset(tmp_path / "b")
    assert first.sha256 == second.sha256
    (tmp_path / "b" / "filter_labels_train.txt").write_text("0 0\n")
    assert open_dataset(tmp_path / "b").sha256 != first.sha256


def test_the_repository_names_are_found_and_test_points_may_be_missing(tmp_path):
    for name in ("trn.json.gz", "lbl.json.gz"):
        (tmp_path / name).write_bytes(gzip.compress(GOOD_POINT.encode()))
    dataset = open_dataset(tmp_path)
    assert len(dataset.train) == len(dataset.labels) == 1
    assert dataset.test is None
    assert dataset.train_filter is None


def test_the_other_filter_names_are_found(tmp_path):
    write_dataset(tmp_path, synthetic_dataset(5, 10, 5, seed=0))
    (tmp_path / "trn_filter_labels.txt").write_text("9 4\n")
    (tmp_path / "tst_filter_labels.txt").write_text("4 0\n")
    dataset = open_dataset(tmp_path)
    assert dataset.train_filter.tolist() == [[9, 4]]
    assert dataset.test_filter.tolist() == [[4, 0]]


def test_a_folder_without_a_data_set_says_every_name_tried(tmp_path):
    (tmp_path / "other.csv").touch()
    error = broken(open_dataset, tmp_path, None, "trn.jsonl, trn.jsonl.gz, trn.json, trn.json.gz")
    assert error.found == "other.csv"


def test_a_path_that_is_no_folder_says_so(tmp_path):
    broken(open_dataset, tmp_path / "none", None, "a folder", "nothing of that name")


def test_two_files_for_one_part_are_refused(tmp_path):
    for name in ("trn.jsonl", "trn.json.gz", "lbl.jsonl"):
        (tmp_path / name).touch()
    broken(open_dataset, tmp_path, None, "only one of", "trn.jsonl and trn.json.gz")


def test_a_data_set_needs_a_label_and_a_training_point(tmp_path):
    (tmp_path / "trn.jsonl").touch()
    (tmp_path / "lbl.jsonl").touch()
    with pytest.raises(DataError, match="at least one label"):
        open_dataset(tmp_path)
    (tmp_path / "lbl.jsonl").write_text(GOOD_POINT)
    with pytest.raises(DataError, match="at least one training point"):
        open_dataset(tmp_path)


def test_a_test_filter_without_test_points_is_refused(tmp_path):
    for name in ("trn.jsonl", "lbl.jsonl"):
        (tmp_path / name).write_text(GOOD_POINT)
    (tmp_path / "filter_labels_test.txt").touch()
    with pytest.raises(DataError, match="test points beside a test filter"):
        open_dataset(tmp_path)


def test_writing_over_a_data_set_is_refused(tmp_path):
    dataset = synthetic_dataset(3, 5, 0, seed=0)
    write_dataset(tmp_path, dataset)
    with pytest.raises(DataError, match="without a data set in it"):
        write_dataset(tmp_path, dataset)


def test_the_shipped_sample_has_the_counts_its_readme_states():
    found = report(open_dataset(SAMPLE), "title+content")
    assert (found["train"]["n_points"], found["test"]["n_points"]) == (37_380, 7_682)
    assert found["n_labels"] == 12_476
    assert round(found["train"]["labels_per_point_mean"], 3) == 2.262
    assert round(found["test"]["labels_per_point_mean"], 3) == 2.197
    assert (found["points_per_label_median"], found["points_per_label_max"]) == (2.0, 2_212)
    assert round(found["points_per_label_mean"], 2) == 6.78
    assert found["labels_without_points"] == 0
    readme = (SAMPLE / "README.md").read_text()
    for row in ("| trn | 37,380 | 2.262 | 12,476 |", "| tst | 7,682 | 2.197 | 5,414 |"):
        assert row in readme


BOM = "\ufeff"
NAMED = '{"uid": "a", "title": "A"}\n{"uid": "b", "title": "B"}\n'


@pytest.mark.parametrize("ending", ["", "\n", " \r\n\r\n", "\t"])
@pytest.mark.parametrize("start", ["", BOM])
@pytest.mark.parametrize("name", ["file.txt", "file.txt.gz"])
@pytest.mark.parametrize(
    ("read", "text"),
    [
        (lambda path: read_labels(path).uids, NAMED),
        (lambda path: read_points(path, 1).labels.toarray().tolist(), f"{GOOD_POINT}\n"),
        (lambda path: read_filter(path, 3, 3).tolist(), "1 2\n0 0\n"),
    ],
)
def test_a_byte_order_mark_and_blank_lines_at_the_end_change_nothing(
    tmp_path, read, text, name, start, ending
):
    def found(content):
        path = tmp_path / name
        raw = content.encode()
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return read(path)

    assert found(start + text + ending) == found(text)


def test_a_blank_line_before_the_end_is_named_by_its_own_line(tmp_path):
    path = tmp_path / "lbl.jsonl"
    path.write_text(NAMED.replace("\n", "\n\n\n", 1))
    broken(read_labels, path, 2, "a line of data", "a blank line")


def test_a_text_of_another_encoding_is_named(tmp_path):
    path = tmp_path / "lbl.jsonl"
    path.write_bytes(NAMED.encode("utf-16"))
    broken(read_labels, path, 1, "UTF-8 text")

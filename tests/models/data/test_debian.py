"""Packages to points and labels: every rule on a Packages list small enough to read."""

import gzip
import sys

import orjson
import pytest

from models.__main__ import main
from models.data import debian
from models.data.debian import Package, in_test, read_descriptions, read_packages, related_packages
from models.data.formats import open_dataset
from models.errors import AptError, DataError

PACKAGES = """\
Package: whale
Source: sea (1.2)
Section: games
Depends: libc6 (>= 2.36), water:any | mail-transport-agent
Pre-Depends: ship
Recommends: whale-data (= 1.0), harbour [amd64]
Suggests: sail
Enhances: harpoon
Conflicts: shark
Description: large animal
Description-md5: 0123

Package: whale-data
Source: sea
Description: large animal, the data
 It says itself
 .
  what it is.

Package: water
Description: wet
Description-md5: none

Package: whale
Description: of a second architecture
"""

DESCRIPTIONS = """\
Package: whale
Description-md5: 0123
Description-en: large animal
 It swims
 .
   in   water.
"""


def lines(text: str) -> list[bytes]:
    return text.encode().splitlines(keepends=True)


def package(name: str, *targets: str, source: str = "", **more: str) -> Package:
    values = {"section": "misc", "summary": f"the {name}", "text": f"long {name}"} | more
    return Package(name=name, source=source or name, targets=frozenset(targets), **values)


def named(*packages: Package) -> dict[str, Package]:
    return {package.name: package for package in packages}


def pairs(dataset) -> set[tuple[str, str]]:
    """(point, label) by name, of both parts."""
    found = set()
    for points in (dataset.train, dataset.test):
        if points is not None:
            rows, columns = points.labels.nonzero()
            uids = dataset.labels.uids
            found |= {(points.uids[r], uids[c]) for r, c in zip(rows, columns, strict=True)}
    return found


@pytest.fixture(autouse=True)
def held_out_by_name(monkeypatch):
    """In place of the hash; `in_test` as imported here stays what it is."""
    monkeypatch.setattr(debian, "in_test", lambda source: source.startswith("test-"))


@pytest.fixture
def packages():
    return read_packages(lines(PACKAGES), read_descriptions(lines(DESCRIPTIONS)))


def test_five_relations_count_with_all_alternatives(packages):
    expected = {"libc6", "water", "mail-transport-agent", "ship", "whale-data", "harbour", "sail"}
    assert packages["whale"].targets == expected | {"harpoon"}
    assert packages["water"].targets == frozenset()


def test_source_is_the_one_named_or_the_package_itself(packages):
    assert [packages[name].source for name in ("whale", "whale-data", "water")] == [
        "sea",
        "sea",
        "water",
    ]


def test_long_description_is_in_place_or_in_the_lists_and_becomes_one_line(packages):
    assert packages["whale"].text == "It swims in water."
    assert packages["whale-data"].text == "It says itself what it is."
    assert packages["water"].text == ""


def test_title_is_name_and_short_description(packages):
    assert packages["whale"].title == "whale - large animal"


def test_first_of_several_architectures_counts(packages):
    assert list(packages) == ["whale", "whale-data", "water"]


def test_labels_are_real_packages_of_another_source():
    found = related_packages(
        named(
            package("a", "x", "y", "virtual", source="s"),
            package("b", "x", "y", "virtual", source="t"),
            package("x", source="s"),
            package("y"),
        )
    )
    assert pairs(found) == {("a", "y"), ("b", "y")}  # x has one point left, and needs two


@pytest.mark.parametrize(
    "auxiliary",
    [
        {"summary": "Transitional package"},
        {"summary": "dummy package for upgrades"},
        {"summary": "XSL module (dummy)"},
        {"section": "oldlibs"},
        {"section": "universe/oldlibs"},
        {"section": "debug"},
        {"name": "x-dbg"},
        {"name": "x-dbgsym"},
    ],
)
def test_transitional_dummy_oldlibs_and_debug_packages_are_no_label_and_no_point(auxiliary):
    name = auxiliary.pop("name", "x")
    found = related_packages(
        named(
            package("a", name, "y"),
            package("b", name, "y"),
            package(name, "y", **auxiliary),
            package("y"),
        )
    )
    assert pairs(found) == {("a", "y"), ("b", "y")}


def test_a_package_whose_words_only_look_like_it_stays():
    found = related_packages(
        named(package("a", "x"), package("b", "x"), package("x", summary="dummy display driver"))
    )
    assert found.labels.uids == ["x"]


def test_targets_that_too_many_sources_name_say_nothing(monkeypatch):
    monkeypatch.setattr(debian, "MAX_SOURCES", 2)
    twice = [package(f"a{i}", "x", "y", source=f"s{i % 2}") for i in range(4)]
    found = related_packages(named(*twice, package("b", "x"), package("x"), package("y")))
    assert found.labels.uids == ["y"]


def test_a_package_that_names_too_many_is_no_point(monkeypatch):
    monkeypatch.setattr(debian, "MAX_TARGETS", 1)
    found = related_packages(
        named(
            package("a", "x"), package("b", "x"), package("c", "x", "y"), package("x"), package("y")
        )
    )
    assert pairs(found) == {("a", "x"), ("b", "x")}


def test_a_label_needs_one_training_point():
    found = related_packages(
        named(
            package("test-a", "x", "y"),
            package("test-b", "x", "y"),
            package("test-c", "x"),
            package("d", "y"),
            package("x"),
            package("y"),
        )
    )
    assert found.labels.uids == ["y"]
    assert (found.train.uids, found.test.uids) == (["d"], ["test-a", "test-b"])


def test_texts_are_cut_longer_for_points_than_for_labels():
    long = "x" * 2000
    found = related_packages(
        named(package("a", "y", text=long), package("b", "y", text=long), package("y", text=long))
    )
    assert {len(content) for content in found.train.contents} == {1200}
    assert {len(content) for content in found.labels.contents} == {600}


def test_nothing_related_is_an_error_that_says_why():
    with pytest.raises(AptError, match="no package is named by 2 others"):
        related_packages(named(package("a", "x"), package("x")))


def test_a_sample_is_no_larger_than_asked_and_always_the_same():
    many = named(*(package(f"a{i}", "x") for i in range(50)), package("x"))
    first, again = related_packages(many, 20), related_packages(many, 20)
    assert len(first.train) == 20
    assert first.train.uids == again.train.uids != sorted(many)[:20]


def test_a_fifth_of_the_sources_is_held_out():
    held_out = sum(in_test(f"source-{i}") for i in range(2000))
    assert 340 < held_out < 460


@pytest.fixture
def apt(monkeypatch):
    """An index of twelve packages in place of the machine's."""
    text = "".join(
        f"Package: {side}{i}\nDepends: x, y\nDescription: short {i}\nDescription-md5: 0123\n\n"
        for side in ("a", "test-a")
        for i in range(5)
    )
    text += "Package: x\nDescription: target\n\nPackage: y\nDescription: target\n"
    monkeypatch.setattr(debian, "package_lines", lambda: lines(text))
    monkeypatch.setattr(debian, "description_lines", lambda: lines(DESCRIPTIONS))


@pytest.mark.usefixtures("apt")
def test_the_command_writes_a_data_set_that_opens_and_prints_its_counts(tmp_path, capsys):
    assert main(["prepare", "debian", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "train n points" in printed
    assert "n labels                     2" in printed
    opened = open_dataset(tmp_path / "out")
    assert (len(opened.train), len(opened.test), opened.labels.uids) == (5, 5, ["x", "y"])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("apt")
def test_written_lines_have_the_four_fields_and_the_same_bytes_each_time(tmp_path):
    for name in ("one", "two"):
        debian.make_dataset(tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["lbl.jsonl.gz", "trn.jsonl.gz", "tst.jsonl.gz"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    first = orjson.loads(
        gzip.decompress((tmp_path / "one" / names[1]).read_bytes()).split(b"\n")[0]
    )
    assert first == {
        "uid": "a0",
        "title": "a0 - short 0",
        "content": "It swims in water.",
        "target_ind": [0, 1],
    }


@pytest.mark.usefixtures("apt")
def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="expected a folder that is empty or not there yet"):
        debian.make_dataset(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.usefixtures("apt")
def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("models.data.formats.write_points", fail)
    with pytest.raises(OSError, match="No space left"):
        debian.make_dataset(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_empty_lists_say_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(debian, "package_lines", list)
    monkeypatch.setattr(debian, "description_lines", list)
    with pytest.raises(AptError, match="apt's lists are empty: run `apt-get update`"):
        debian.make_dataset(tmp_path / "out")


@pytest.mark.parametrize("words", [[], ["--config", "x.toml", "debian", "--out", "x"]])
def test_prepare_takes_a_config_or_a_source(words, capsys):
    with pytest.raises(SystemExit) as raised:
        main(["prepare", *words])
    assert raised.value.code == 2
    assert "either --config or a SOURCE" in capsys.readouterr().err


def test_a_missing_parser_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "debian.deb822", None)
    with pytest.raises(AptError, match=r"pip install 'astrolabe\[debian\]'"):
        read_descriptions([])

"""Comparing: one table over peers and bundles on the same data, measured once, checked first."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from models import stages
from models.__main__ import main
from models.compare import bench
from models.compare.charts import LATENCY_CHART, TAIL_CHART
from models.compare.compare import Request, compare
from models.compare.peers import registry
from models.compare.record import COMPARISON_FILE
from models.compare.table import TABLE_FILE
from models.data.formats import write_dataset
from models.errors import ComparisonError, PeerMissing
from service.bundle.verify import read_manifest
from tests.support.synthetic import synthetic_dataset
from tests.support.tiny_job import N_LABELS, TOML


class FakePeer:
    """Answers with the labels that training saw most often, whatever is asked."""

    title = "Frequent"
    version = "frequent 1.0"
    fitted = 0

    def __init__(self, folder):
        assert folder.is_dir()
        self.settings = {"beam": 1}

    @property
    def size_bytes(self):
        return 1000

    def fit(self, features, labels):
        assert features.shape[0] == labels.shape[0]
        assert features.dtype == labels.dtype == np.float32
        type(self).fitted += 1
        self.best = np.argsort(-labels.sum(axis=0).A1, kind="stable")

    def rank(self, features, k):
        return np.tile(self.best[:k], (features.shape[0], 1)).astype(np.int64)


class FakeTfIdf:
    """One feature: the length of the text."""

    version = "lengths 1.0"
    size_bytes = 24

    def fit(self, texts):
        return self.transform(texts)

    def transform(self, texts):
        return csr_matrix([[len(text)] for text in texts], dtype=np.float32)


@pytest.fixture(autouse=True)
def fake_peer(monkeypatch):
    monkeypatch.setattr(FakePeer, "fitted", 0)
    monkeypatch.setattr("models.compare.exam.WARM_UP_QUERIES", 2)
    monkeypatch.setattr("models.compare.exam.TIMED_QUERIES", 10)
    monkeypatch.setitem(registry.PEERS, "frequent", (__name__, "FakePeer"))
    monkeypatch.setattr(bench.features, "TfIdf", FakeTfIdf)
    make = registry.make_peer

    def make_peer(name, folder):
        return FakePeer(folder) if name == "frequent" else make(name, folder)

    monkeypatch.setattr("models.compare.bench.make_peer", make_peer)
    monkeypatch.setattr("models.compare.compare.make_peer", make_peer)


@pytest.fixture
def tiny(sealed, tiny_job, tmp_path):
    """A request over the sealed tiny job; its outputs go to a folder of the test's own."""
    data = Path(tiny_job.run.config.data.path)
    return {
        "configs": (data.parent / "tiny.toml",),
        "var": tiny_job.bundles.parent.parent,
        "out": tmp_path / "out",
    }


def test_peers_and_a_configuration_stand_in_one_table(tiny, sealed, tiny_job):
    comparison = compare(Request(**tiny, peers=("frequent",)))
    ours, peer = comparison.rows
    assert (ours.system, peer.system) == ("Astrolabe tiny", "Frequent")
    manifest = read_manifest(sealed)
    assert ours.metrics == manifest.quality.metrics
    assert ours.train_seconds == tiny_job.run.measured()["training"]["seconds"]
    spare = [file for file in manifest.encoder.variants.values() if file != manifest.encoder.file]
    sizes = {name: entry.bytes for name, entry in manifest.files.items() if name not in spare}
    assert len(spare) == 2
    assert ours.model_bytes == sum(sizes.values())
    assert peer.model_bytes == 1024
    assert 0 < peer.metrics["p1"] < ours.metrics["p1"]
    assert 0 < peer.query_ms_p50 <= peer.query_ms_p99
    names = {path.name for path in tiny["out"].iterdir()}
    assert names == {COMPARISON_FILE, TABLE_FILE, LATENCY_CHART, TAIL_CHART}
    written = json.loads((tiny["out"] / COMPARISON_FILE).read_text())
    assert written["subject"]["n_test"] == 200
    assert [row["version"] for row in written["rows"]][1] == "frequent 1.0"
    assert set(written["rows"][0]["measured_by"]) == {"command", "machine", "date", "revision"}


def test_the_table_grows_and_what_is_on_record_is_not_measured_again(tiny, monkeypatch):
    compare(Request(**tiny | {"configs": ()}, data=data_of(tiny), peers=("frequent",)))
    grown = compare(Request(**tiny))
    assert len(grown.rows) == 2
    monkeypatch.setattr(bench, "evaluate", lambda *_: pytest.fail("scored again"))
    assert compare(Request(**tiny, peers=("frequent",))) == grown
    assert FakePeer.fitted == 1


@pytest.mark.parametrize(
    ("asked", "scored"), [({}, 0), ({"again": True}, 1), ({"propensity": (0.6, 2.6)}, 1)]
)
def test_what_the_release_gate_measured_is_scored_only_where_more_is_asked(
    tiny, monkeypatch, asked, scored
):
    calls = []
    score = bench.evaluate
    monkeypatch.setattr(bench, "evaluate", lambda *given: calls.append(given) or score(*given))
    [row] = compare(Request(**tiny, **asked)).rows
    assert len(calls) == scored
    assert row.metrics["p1"] > 0


def test_again_measures_what_is_on_record(tiny):
    request = {"data": data_of(tiny), "peers": ("frequent",)}
    for again in (False, True):
        compare(Request(**tiny | {"configs": ()}, **request, again=again))
    assert FakePeer.fitted == 2


def test_a_peer_of_another_version_is_measured_again(tiny, monkeypatch):
    request = Request(**tiny | {"configs": ()}, data=data_of(tiny), peers=("frequent",))
    compare(request)
    monkeypatch.setattr(FakePeer, "version", "frequent 1.1")
    [row] = compare(request).rows
    assert (FakePeer.fitted, row.version) == (2, "frequent 1.1")


def test_a_bundle_is_named_with_its_id_and_its_training_is_not_known(tiny, sealed):
    request = Request(**tiny | {"configs": ()}, data=data_of(tiny), bundles=(sealed,))
    [row] = compare(request).rows
    assert row.system == f"Astrolabe tiny ({sealed.name[:8]})"
    assert row.train_seconds is None


def test_a_configuration_on_record_whose_bundle_is_gone_is_not_trained(tiny, monkeypatch, tmp_path):
    before = compare(Request(**tiny))
    monkeypatch.setattr(stages, "run_all", lambda *_: pytest.fail("trained again"))
    assert compare(Request(**tiny | {"var": tmp_path / "empty"})) == before


def test_a_configuration_that_is_not_sealed_is_trained(tiny, sealed, monkeypatch, tmp_path):
    monkeypatch.setattr(stages, "run_all", lambda config, var: sealed)
    [row] = compare(Request(**tiny | {"var": tmp_path / "empty"})).rows
    assert row.digest == sealed.name


def test_a_table_is_compared_as_its_configuration_reads_it(tmp_path, monkeypatch):
    monkeypatch.setattr("models.data.tables.table.HELD_OUT_FROM", 10)
    rows = [f"words of row {chr(97 + n)},{'xy'[n % 2]}" for n in range(20)]
    (tmp_path / "t.csv").write_text("said,about\n" + "\n".join(rows) + "\n")
    command = ["all", "--data", str(tmp_path / "t.csv"), "--text", "said", "--labels", "about"]
    assert main([*command, "--var", str(tmp_path / "var"), "--test-share", "0.2"]) == 0
    config = tmp_path / "var" / "runs" / "t" / "t.toml"
    request = Request(configs=(config,), peers=(), var=tmp_path / "var")
    assert len(compare(request).rows) == 1


def test_other_data_is_an_error_before_anything_is_measured(tiny, tmp_path):
    other = tmp_path / "other"
    write_dataset(other, synthetic_dataset(N_LABELS, 90, 20, seed=12))
    with pytest.raises(ComparisonError, match="configuration tiny is on data with SHA-256 "):
        compare(Request(**tiny, data=other, peers=("frequent",)))
    assert FakePeer.fitted == 0


def test_a_bundle_of_other_data_is_an_error(tiny, sealed, tmp_path):
    other = tmp_path / "other"
    write_dataset(other, synthetic_dataset(N_LABELS, 90, 20, seed=12))
    with pytest.raises(ComparisonError, match=f"bundle {sealed.name[:12]} is on data with"):
        compare(Request(**tiny | {"configs": ()}, data=other, bundles=(sealed,)))


def test_other_text_is_an_error(tiny):
    with pytest.raises(ComparisonError, match=r"reads title, the comparison title\+content"):
        compare(Request(**tiny, fields="title+content"))


def test_a_page_without_markers_is_an_error_before_anything_is_measured(tiny, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing here\n")
    with pytest.raises(ComparisonError, match="compare:data"):
        compare(Request(**tiny, peers=("frequent",), into=page))
    assert FakePeer.fitted == 0


def test_the_first_configuration_gives_data_text_and_propensities(tiny, tmp_path, monkeypatch):
    path = tmp_path / "tiny.toml"
    text = TOML.format(folder=data_of(tiny).as_posix())
    path.write_text(f"{text}[metrics]\npropensity_a = 0.6\npropensity_b = 2.6\n")
    monkeypatch.setattr(bench.Bench, "add_config", lambda *_: None)
    subject = compare(Request(**tiny | {"configs": (path,)}, peers=("frequent",))).subject
    assert (subject.data, subject.fields) == ("data", "title")
    assert (subject.propensity_a, subject.propensity_b) == (0.6, 2.6)


def test_an_empty_comparison_is_an_error(tiny):
    with pytest.raises(ComparisonError, match="nothing to compare: name --config"):
        compare(Request(**tiny | {"configs": ()}, data=data_of(tiny)))


def test_no_data_and_no_configuration_is_an_error():
    with pytest.raises(ComparisonError, match="name the data"):
        compare(Request(peers=("frequent",)))


def test_a_peer_that_is_not_installed_is_an_error_before_anything_is_measured(tiny, monkeypatch):
    found = importlib.import_module

    def without_omikuji(name):
        if name == "omikuji":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return found(name)

    monkeypatch.setattr(importlib, "import_module", without_omikuji)
    with pytest.raises(PeerMissing, match=r"pip install 'astrolabe\[peers\]'"):
        compare(Request(**tiny, peers=("frequent", "parabel")))
    assert FakePeer.fitted == 0


def test_the_command_prints_the_table_and_fills_the_page(tiny, capsys, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- compare:shelf -->\n<!-- /compare:shelf -->\n")
    arguments = ["--config", str(tiny["configs"][0]), "--var", str(tiny["var"])]
    arguments += ["--out", str(tiny["out"]), "--into", str(page), "--name", "shelf"]
    assert main(["compare", *arguments, "--peers", "frequent"]) == 0
    printed = capsys.readouterr().out
    assert "| Frequent |" in printed
    assert "`python -m models compare --config " in printed
    assert printed.strip() in page.read_text()


def test_the_command_says_which_peers_there_are(capsys):
    assert main(["compare", "--data", "x", "--peers", "parabel,elias"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: --peers: 'elias' is not known; there are parabel, bonsai")


def test_a_peer_leaves_nothing_behind_and_removes_what_a_killed_comparison_left(tiny):
    left_over = tiny["var"] / ".staging-killed"
    left_over.mkdir(parents=True)
    compare(Request(**tiny | {"configs": ()}, data=data_of(tiny), peers=("frequent",)))
    assert not list(tiny["var"].glob(".staging-*"))


def data_of(tiny):
    return tiny["configs"][0].parent / "data"

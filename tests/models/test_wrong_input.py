"""What real data and real machines do wrong: one sentence for an error, and nothing is lost.

Through the command line, and through the engine for what users may ask.
"""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from scipy.sparse import csr_array

from models import stages
from models.__main__ import main
from models.config import load_config
from models.data.formats import write_dataset
from models.errors import RunError
from models.runs import CHECKPOINT_FILE, METRICS_FILE, MODEL_FILE
from models.training import checkpoint
from models.training.checkpoint import write_tensors
from service.core.engine import Engine
from service.core.types import Query
from tests.support.killing import killed_at
from tests.support.tiny_job import full_disk, tiny_dataset, write_tiny_job

EMOJI = "👩🏽‍🚀 🌍🐋 ☕️"
RIGHT_TO_LEFT = "ספר הלווייתן הלבן موبي ديك أو الحوت"
ENDLESS = "whale " * 16_666 + "sea!"


@pytest.fixture
def engine(tiny_bundle):
    return Engine.open(tiny_bundle, device="cpu")


def write_job(folder, change):
    """The tiny job on data that `change` was let loose on; returns the configuration's path."""
    write_dataset(folder / "data", change(tiny_dataset()))
    write_tiny_job(folder)
    return folder / "tiny.toml"


def run(stage, config_path, *overrides):
    settings = [part for override in overrides for part in ("--set", override)]
    var = str(config_path.parent / "var")
    return main([stage, "--config", str(config_path), "--var", var, *settings])


def run_folder(config_path):
    (folder,) = (config_path.parent / "var" / "runs" / "tiny").iterdir()
    return folder


def measured(config_path):
    return json.loads((run_folder(config_path) / "measured.json").read_text())["training"]


def one_sentence(capsys):
    """What was printed as an error, which is a single line."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line.lower()]
    assert line.startswith("error: ")
    return line


def without_labels(points, rows):
    keep = np.ones(len(points), np.float32)
    keep[rows] = 0.0
    labels = csr_array(points.labels.multiply(keep[:, None]))
    labels.eliminate_zeros()
    return replace(points, labels=labels)


def test_data_in_which_no_point_has_a_label_is_refused(tmp_path, capsys):
    def change(dataset):
        return replace(dataset, train=without_labels(dataset.train, np.arange(900)))

    path = write_job(tmp_path, change)
    for stage in ("prepare", "train", "all"):
        assert run(stage, path) == 1
        assert "training points of which some have labels, found none" in one_sentence(capsys)


def of(part, **changes):
    """A change of one part of the data set: each named list becomes the value for every row."""

    def change(dataset):
        points = getattr(dataset, part)
        lists = {name: [value] * len(points) for name, value in changes.items()}
        return replace(dataset, **{part: replace(points, **lists)})

    return change


def all_filtered(dataset):
    return replace(dataset, train_filter=np.argwhere(np.ones(dataset.train.labels.shape)))


TITLE = "have a text under title, found none"
BROKEN_DATA = {
    "no test label": (
        lambda d: replace(d, test=without_labels(d.test, np.arange(200))),
        [],
        "tst.jsonl.gz: expected test points of which some have labels, found none that has one",
    ),
    "no test point": (
        lambda d: replace(d, test=d.test.take([])),
        [],
        "expected test points of which some have labels, found none",
    ),
    "blank training texts": (of("train", titles=" "), [], TITLE),
    "invisible training texts": (of("train", titles="\u00ad\u200b"), [], TITLE),
    "blank test texts": (of("test", titles=""), [], TITLE),
    "contents alone": (of("train", titles="", contents="whale"), [], TITLE),
    "everything filtered": (all_filtered, [], "a filter of training points that leaves labels"),
    "one point": (lambda d: replace(d, train=d.train.take([0])), [], "lower it to less than half"),
    "one point to validate on": (None, ["validation.points=1"], "validation.points"),
    "an answer of too many labels": (None, ["release.default_k=100000"], "release.default_k"),
    "a text of too many tokens": (None, ["encoder.max_tokens=100000"], "encoder.max_tokens"),
    "too many golden queries": (None, ["release.golden_queries=20000"], "release.golden_queries"),
    "a seed below zero": (None, ["seed=-1"], "seed"),
    "a number beyond 32 bits": (None, ["index.ef_construction=99999999999"], "ef_construction"),
    "no propensity": (None, ["metrics.propensity_b=-1.0"], "metrics.propensity_b"),
    "a graph without edges": (None, ["index.m=1"], "index.m"),
    "nothing to try": (None, ["memory.kind=queries", "memory.weights=[]"], "memory.weights"),
}


@pytest.mark.parametrize(("change", "settings", "says"), BROKEN_DATA.values(), ids=BROKEN_DATA)
def test_what_a_later_stage_would_trip_over_is_found_by_prepare(
    tmp_path, capsys, change, settings, says
):
    path = write_job(tmp_path, change or (lambda dataset: dataset))
    assert run("prepare", path, *settings) == 1
    assert says in one_sentence(capsys)
    assert not (tmp_path / "var" / "runs").exists()


@pytest.mark.parametrize("test_points", [None, "without labels"])
def test_nothing_to_evaluate_on_is_refused(tmp_path, capsys, test_points):
    def change(dataset):
        unlabelled = without_labels(dataset.test, np.arange(200)) if test_points else None
        return replace(dataset, test=unlabelled)

    assert run("evaluate", write_job(tmp_path, change)) == 1
    assert "test points" in one_sentence(capsys)


def test_points_without_labels_are_counted_and_the_others_trained_on(tmp_path, capsys):
    path = write_job(
        tmp_path, lambda d: replace(d, train=without_labels(d.train, np.arange(0, 900, 3)))
    )
    assert run("prepare", path) == 0
    assert "train points without labels 300" in " ".join(capsys.readouterr().out.split())
    assert run("train", path) == 0
    assert measured(path)["validation_p_at_1"] > 50


def test_no_point_to_validate_on_is_refused(tmp_path, capsys):
    """Every label has one point of its own: none may leave training."""

    def change(dataset):
        n = len(dataset.labels)
        train = dataset.train.take(np.arange(n))
        return replace(dataset, train=replace(train, labels=csr_array(np.eye(n, dtype=np.float32))))

    path = write_job(tmp_path, change)
    assert run("train", path, "validation.points=20") == 1
    assert "no point can be set aside" in one_sentence(capsys)


def test_labels_without_text_are_counted_and_still_learnt_from_their_points(tmp_path, capsys):
    def change(dataset):
        titles = ["" if row % 2 else title for row, title in enumerate(dataset.labels.titles)]
        return replace(dataset, labels=replace(dataset.labels, titles=titles))

    path = write_job(tmp_path, change)
    assert run("prepare", path) == 0
    assert "labels without text 30" in " ".join(capsys.readouterr().out.split())
    assert run("train", path) == 0
    weights = load_file(run_folder(path) / MODEL_FILE)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    assert measured(path)["validation_p_at_1"] > 50


def test_a_text_of_100_000_characters_is_cut_and_trained_on(tmp_path, caplog):
    def change(dataset):
        titles = [ENDLESS if row < 20 else t for row, t in enumerate(dataset.train.titles)]
        return replace(dataset, train=replace(dataset.train, titles=titles))

    assert len(ENDLESS) == 100_000
    path = write_job(tmp_path, change)
    assert run("train", path, "train.epochs=2", "validation.group=none") == 0
    assert "20 of all points were cut (at 24 tokens)" in caplog.text


def test_a_query_of_100_000_characters_is_cut_and_answered(engine):
    long, short = "history of rome " * 6_250, "history of rome"
    queries = [Query(text, 5, "balanced") for text in (long, short)]
    answers = engine.predict(queries).predictions
    assert [len(query.text) for query in queries] == [100_000, 15]
    assert [answer.truncated for answer in answers] == [True, False]
    for answer in answers:
        assert len(answer.rows) == 5
        assert np.isfinite(answer.scores).all()


@pytest.mark.parametrize(
    "text", [EMOJI, RIGHT_TO_LEFT, f"{EMOJI} whale {RIGHT_TO_LEFT}", "\u202e\u200f"]
)
def test_emoji_and_right_to_left_text_is_answered_alone_and_in_company(engine, text):
    asked, other = Query(text, 5, "balanced"), Query("history of rome", 5, "balanced")
    alone = engine.predict([asked]).predictions[0]
    together = engine.predict([other, asked]).predictions[1]
    # A batch of another shape rounds the embedding otherwise, so labels that tie may change places.
    assert alone.scores == pytest.approx(together.scores, abs=1e-5)
    score_of = dict(zip(together.rows, together.scores, strict=True))
    assert all(
        score == pytest.approx(score_of.get(row, together.scores[-1]), abs=1e-5)
        for row, score in zip(alone.rows, alone.scores, strict=True)
    )
    assert len(alone.rows) == 5


def test_emoji_and_right_to_left_text_is_trained_on(tmp_path):
    def change(dataset):
        marks = [EMOJI, RIGHT_TO_LEFT]
        titles = [f"{marks[row % 2]} {t}" for row, t in enumerate(dataset.train.titles)]
        names = [f"{t} {marks[row % 2]}" for row, t in enumerate(dataset.labels.titles)]
        return replace(
            dataset,
            train=replace(dataset.train, titles=titles),
            labels=replace(dataset.labels, titles=names),
        )

    path = write_job(tmp_path, change)
    assert run("train", path) == 0
    assert measured(path)["validation_p_at_1"] > 50


def test_ten_percent_of_doubled_rows_never_straddle_the_split(tmp_path, capsys):
    def change(dataset):
        rows = np.concatenate([np.arange(900), np.arange(0, 900, 10)])
        return replace(dataset, train=dataset.train.take(rows))

    path = write_job(tmp_path, change)
    assert run("prepare", path) == 0
    assert "train duplicate uids 90" in " ".join(capsys.readouterr().out.split())
    assert run("train", path) == 0
    assert measured(path)["validation_p_at_1"] > 50
    job = stages.TrainingJob.open(load_config(path), tmp_path / "var")
    titles = job.dataset.train.titles
    trained = {titles[row] for row in job.parts.train_rows}
    assert not trained & {titles[row] for row in job.parts.validation_rows}


def test_a_misspelt_key_is_named(tmp_path, capsys):
    path = write_job(tmp_path, lambda dataset: dataset)
    text = path.read_text().replace("batch_size", "batchsize")
    path.write_text(text)
    assert run("train", path) == 1
    assert "unknown key train.batchsize: check its spelling" in one_sentence(capsys)
    assert not (tmp_path / "var").exists()


@pytest.mark.parametrize("kind", ["bag", "transformer", "bag+transformer"])
def test_an_encoder_folder_without_a_tokenizer_is_named(tmp_path, bert, capsys, kind):
    source = shutil.copytree(bert, tmp_path / "source")
    (source / "tokenizer.json").unlink()
    path = write_job(tmp_path, lambda dataset: dataset)
    assert run("train", path, f"encoder.kind={kind}", f"encoder.source={source}") == 1
    assert f"{source / 'tokenizer.json'} is not there" in one_sentence(capsys)


def test_a_disk_that_fills_up_during_a_checkpoint_loses_nothing(tmp_path, capsys):
    """Killed with a checkpoint, resumed onto a full disk, resumed onto one with room again."""
    often = "train.checkpoint_seconds=1e-9"
    path, whole = (write_job(tmp_path / name, lambda d: d) for name in ("cut", "whole"))
    assert run("train", whole, often) == 0
    with killed_at(20):
        run("train", path, often)
    held = run_folder(path) / CHECKPOINT_FILE
    before = held.read_bytes()
    capsys.readouterr()
    # The next one may be some bytes shorter: its header holds numbers as text.
    with full_disk(len(before) - 1024):
        assert run("train", path, often) == 1
    sentence = one_sentence(capsys)
    assert f"{held} could not be written" in sentence
    assert "File too large" in sentence
    assert "make room and run the same command again" in sentence
    assert held.read_bytes() == before
    assert not list(held.parent.glob(".*"))
    assert run("train", path, often) == 0
    one, other = (load_file(run_folder(each) / MODEL_FILE) for each in (path, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)
    lines = (run_folder(path) / METRICS_FILE).read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("save_file", SafetensorError("I/O error: No space left on device (os error 28)")),
        ("write_atomic", OSError(28, "No space left on device")),
    ],
)
def test_every_way_to_say_that_a_disk_is_full_is_the_same_error(
    tmp_path, monkeypatch, where, error
):
    path = tmp_path / "weights.safetensors"
    write_tensors(path, {"a": torch.ones(2)})

    def full(*_):
        raise error

    monkeypatch.setattr(checkpoint, where, full)
    with pytest.raises(RunError, match=r"could not be written .*No space left on device"):
        write_tensors(path, {"a": torch.zeros(2)})
    assert load_file(path)["a"].tolist() == [1, 1]

"""A plan: what follows from which facts, the file that it writes, and the command that runs it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.__main__ import main
from models.config import Config, load_config
from models.plan.choices import choose
from models.plan.facts import Facts
from models.plan.plan import make_plan

FACTS = Facts(
    n_points=37_000,
    n_test=7_000,
    n_labels=12_000,
    labels_a_point=2.3,
    n_without_text=0,
    n_without_labels=0,
    n_duplicates=0,
    has_contents=False,
    scripts={"Latin": 1.0},
    tokens_p99=56,
    content_tokens_p99=0,
    tokenizing_s=4e-5,
    n_cpus=2,
    memory_bytes=24 << 30,
    has_gpu=False,
)

CHOICES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("the demo", {}, {"method.kind": "astra", "index.kind": "pq-fastscan", "rerank.kind": "auto"}),
    ("its lengths", {}, {"encoder.max_tokens": 64, "data.fields": "title", "train.epochs": 3}),
    ("few labels", {"n_labels": 500}, {"method.kind": "full-bce", "index.kind": "flat"}),
    ("some labels", {"n_labels": 4000}, {"method.kind": "astra", "index.kind": "pq-fastscan"}),
    ("many labels", {"n_labels": 10**5}, {"index.kind": "ivf-pq"}),
    ("very many labels", {"n_labels": 10**6}, {"index.kind": "ivf-pq"}),
    ("few points", {"n_points": 300}, {"validation.points": 30, "train.epochs": 60}),
    ("few points, batches", {"n_points": 300}, {"train.batch_size": 8, "pretrain.epochs": None}),
    ("a handful of points", {"n_points": 20}, {"validation.points": 2, "validation.group": "none"}),
    ("many points", {"n_points": 10**6}, {"validation.points": 2000, "train.batch_size": None}),
    ("no second stage", {"n_points": 5000}, {"rerank.kind": None, "pretrain.epochs": 5}),
    (
        "two fields",
        {"has_contents": True, "content_tokens_p99": 900},
        {"data.fields": "title|content", "encoder.field_tokens": [64, 256]},
    ),
    ("long texts", {"tokens_p99": 300}, {"encoder.max_tokens": 256}),
    ("short texts", {"tokens_p99": 3}, {"encoder.max_tokens": 16}),
]


@pytest.mark.parametrize(
    ("changes", "expected"), [case[1:] for case in CHOICES], ids=[case[0] for case in CHOICES]
)
def test_settings_follow_from_facts(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    chosen = {choice.key: choice.value for choice in choose(replace(FACTS, **changes))}
    assert {key: chosen.get(key) for key in expected} == expected


@pytest.mark.parametrize("changes", [case[1] for case in CHOICES], ids=[c[0] for c in CHOICES])
def test_every_choice_is_a_configuration_and_has_a_reason(changes: dict[str, Any]) -> None:
    raw: dict[str, Any] = {"name": "a", "data": {"path": "x"}}
    for choice in choose(replace(FACTS, **changes)):
        section, key = choice.key.split(".")
        raw.setdefault(section, {})[key] = choice.value
        assert choice.reason
    Config.model_validate(raw)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "support tickets.csv"
    rows = [f"question {word} about {topic},{topic}" for word in "abcdefghij" for topic in "xyz"]
    path.write_text("question,tags\n" + "\n".join(rows) + "\n")
    return path


def test_the_file_of_a_plan_is_the_same_configuration(table: Path, tmp_path: Path) -> None:
    from models.config import TableConfig

    plan = make_plan(table, TableConfig(time="", test_share=0.2), ["train.epochs=7"])
    path = plan.write(tmp_path / "var")
    assert path == tmp_path / "var/runs/support-tickets/support-tickets.toml"
    assert load_config(path) == plan.config
    assert (plan.config.train.epochs, plan.config.data.table.labels) == (7, "tags")
    assert "epochs = 7  # given by --set" in path.read_text()


def test_a_dry_run_writes_the_plan_and_nothing_else(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    var = tmp_path / "var"
    assert main(["all", "--data", str(table), "--var", str(var), "--dry-run"]) == 0
    out = capsys.readouterr().out
    for words in ("What was read", "What was chosen", "full-bce"):
        assert words in out
    assert [path.name for path in var.rglob("*") if path.is_file()] == ["support-tickets.toml"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["a,x"], "at least 4 rows"),
        (["a,x", "b,y", "c,z", "d,w", "e,v"], "give more points of each label"),
    ],
)
def test_too_little_data_is_said_in_a_sentence(
    rows: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text("text,labels\n" + "\n".join(rows) + "\n")
    command = ["all", "--data", str(tmp_path / "t.csv"), "--var", str(tmp_path / "v")]
    assert main([*command, "--dry-run"]) == 1
    assert says in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("n_rows", [5, 20, 200])
def test_a_small_table_trains(n_rows: int, tmp_path: Path) -> None:
    topics = [*["whales", "rome", "stars"][: max(1, n_rows // 5)], "roses"]
    rows = [
        f"words {row} about {topics[row % len(topics)]},{topics[row % len(topics)]}"
        for row in range(n_rows)
    ]
    (tmp_path / "t.csv").write_text("text,labels\n" + "\n".join(rows) + "\n")
    assert main(["all", "--data", str(tmp_path / "t.csv"), "--var", str(tmp_path / "v")]) == 0
    assert (tmp_path / "v" / "bundles" / "t" / "CURRENT").is_file()


@pytest.mark.parametrize("argv", [["all"], ["all", "--data", "a", "--config", "b"]])
def test_all_takes_a_table_or_a_configuration(argv: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(argv)

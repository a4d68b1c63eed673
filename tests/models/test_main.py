"""The command line: stages in order, one sentence for an error, exit codes."""

import pytest

from models.__main__ import main
from tests.support.tiny_job import write_tiny_job


@pytest.fixture
def config_path(tmp_path):
    write_tiny_job(tmp_path)
    return tmp_path / "tiny.toml"


def run(stage, config_path, *more):
    var = str(config_path.parent / "var")
    return main([stage, "--config", str(config_path), "--var", var, *more])


def test_stages_one_by_one_end_in_a_bundle_that_all_then_finds(config_path, capsys):
    for stage in ("prepare", "train", "export", "index", "release", "evaluate"):
        assert run(stage, config_path) == 0, stage
    printed = capsys.readouterr().out
    assert "to validate on" in printed
    assert "recall@10" in printed
    assert "test split, 200 queries" in printed
    assert run("all", config_path) == 0
    assert "recall@10" in capsys.readouterr().out


def test_an_error_is_one_sentence_and_exit_code_one(config_path, capsys):
    assert run("train", config_path, "--set", "train.epoch=3") == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert "unknown key train.epoch" in printed.err
    assert "Traceback" not in printed.err


def test_a_stage_out_of_order_says_what_to_run_first(config_path, capsys):
    assert run("index", config_path) == 1
    assert "run `python -m models export` first" in capsys.readouterr().err


def test_broken_data_names_file_and_line(config_path, capsys):
    path = next((config_path.parent / "data").glob("lbl.*"))
    path.unlink()
    (config_path.parent / "data" / "lbl.jsonl").write_text(
        '{"uid": "a", "title": "x"}\n{"uid": 1}\n'
    )
    assert run("prepare", config_path) == 1
    assert "lbl.jsonl, line 2" in capsys.readouterr().err


def test_no_stage_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as raised:
        main([])
    assert raised.value.code == 2
    assert "STAGE" in capsys.readouterr().err


def test_tune_wants_a_run_and_says_so(capsys):
    with pytest.raises(SystemExit) as raised:
        main(["tune", "--recall", "0.9"])
    assert raised.value.code == 2
    assert "--config or --run" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--recall", "98"], ["--p99-us", "0"], ["--memory-mb", "x"]])
def test_tune_refuses_a_goal_that_is_none(words, capsys):
    with pytest.raises(SystemExit):
        main(["tune", "--config", "a.toml", *words])
    assert "is not a" in capsys.readouterr().err


def test_tune_seals_and_checks_or_says_what_is_missed(config_path, capsys):
    assert run("train", config_path) == 0
    assert run("tune", config_path, "--recall", "0.9", "--kinds", "flat") == 0
    printed = capsys.readouterr().out
    assert "chosen: flat: recall@10 1.0000" in printed
    bundles = config_path.parent / "var" / "bundles" / "tiny"
    var = ["--var", str(config_path.parent / "var")]
    assert main(["tune", "--check", str(bundles), *var]) == 0
    assert "balanced holds recall@10 >= 0.9" in capsys.readouterr().out
    assert main(["tune", "--check", str(bundles), *var, "--p99-us", "0.001"]) == 1
    assert "does not hold p99 <= 0.001 us" in capsys.readouterr().err
    assert run("tune", config_path, "--p99-us", "0.001", "--kinds", "flat") == 1
    printed = capsys.readouterr()
    assert "the nearest, flat, misses it" in printed.err
    assert "recall@10" in printed.out

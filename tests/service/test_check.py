"""python -m service.check: facts and answers of a bundle that is whole, a sentence for one that is
not."""

import json
import shutil
from pathlib import Path

import pytest

from service.check import main


def test_it_prints_facts_then_an_answer_a_text(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main([str(tiny_bundle), "--query", "the white whale", "--query", "rome", "--k", "3"]) == 0
    )
    about, *answers = map(json.loads, capsys.readouterr().out.splitlines())
    assert (about["name"], about["labels"]) == ("tiny", 50)
    assert [answer["query"] for answer in answers] == ["the white whale", "rome"]
    assert "whale" in answers[0]["labels"][0]["text"]
    assert [len(answer["labels"]) for answer in answers] == [3, 3]


def test_a_broken_bundle_is_named(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "b")
    (folder / "tokenizer.json").write_text("{}")
    assert main([str(folder)]) == 1
    assert "bundle_file_corrupt" in capsys.readouterr().err


def test_settings_are_those_of_the_service(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ASTROLABE_DEVICE", "cuda")
    assert main([str(tiny_bundle)]) == 1
    assert "device_unavailable" in capsys.readouterr().err
    assert main([str(tiny_bundle), "--device", "cpu", "--max-batch-tokens", "8"]) == 1
    assert "max_batch_tokens (8) is below the bundle's max_tokens" in capsys.readouterr().err
    assert main([str(tiny_bundle), "--device", "cpu", "--cuda-graphs", "true"]) == 1
    assert "cuda_graphs does not go with device cpu" in capsys.readouterr().err
    assert main([str(tiny_bundle), "--device", "cpu", "--encoder-variant", "fp8"]) == 1
    assert "fp8" in capsys.readouterr().err
    assert main([str(tiny_bundle), "--device", "cpu", "--gpu-max-rows", "8"]) == 0


@pytest.mark.parametrize("wrong", [["--effort", "best"], ["--k", "-1"]])
def test_wrong_options_are_told(tiny_bundle: Path, wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(tiny_bundle), *wrong])
    assert stopped.value.code == 2

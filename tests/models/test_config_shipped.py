"""The shipped configurations: each one runs in a fresh clone, or says where its data comes from.

What git ignores, such as data that someone made here, counts as not there: every configuration is
opened in a folder that holds the shipped samples alone.
"""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from models.__main__ import main
from models.config import load_config
from models.data.formats import open_dataset
from models.encoders.source import PACKAGE_PREFIX

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "models" / "samples"
CONFIGS = sorted((ROOT / "models" / "configs").glob("*.toml"))
COMMAND = re.compile(r"`python -m models ([^`]+)`")
SOURCE = re.compile(r"https://\S+")

pytestmark = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


@pytest.fixture
def fresh_clone(tmp_path, monkeypatch):
    """The current folder becomes one that has the samples and no other data."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "samples").symlink_to(SAMPLES)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("fresh_clone")
def test_shipped_configuration_has_its_data_or_says_how_to_get_it(path, capsys):
    data = Path(load_config(path).data.path)
    if data.exists():
        assert len(open_dataset(data).train) > 0
        return
    assert main(["all", "--config", str(path)]) == 1
    said = capsys.readouterr().err
    (line,) = said.splitlines()
    _, _, advice = line.partition(f"error: {path}: its data folder {data} is not there: ")
    assert str(data) in advice
    commands = COMMAND.findall(advice)
    assert commands or (SOURCE.search(advice) and "docs/training.md, Data" in advice)
    assert "licence" in advice or "CC0 1.0" in advice
    for command in commands:
        with pytest.raises(SystemExit) as ended:  # parsed, and not run
            main([*shlex.split(command), "--help"])
        assert ended.value.code == 0, command


@pytest.mark.usefixtures("fresh_clone")
def test_data_that_is_chosen_and_not_there_is_asked_for_in_general(path, capsys):
    assert main(["train", "--config", str(path), "--set", "data.path=nowhere"]) == 1
    assert capsys.readouterr().err == (
        f"error: {path}: its data folder nowhere is not there: put a data set there "
        "(docs/training.md, Data), or name another folder with --set data.path=FOLDER\n"
    )


def test_shipped_configuration_needs_no_other_run_and_only_what_setup_installs(path):
    config = load_config(path)
    assert config.teacher.path == "", "say at the head of the file which run makes the teacher"
    package = config.encoder.source.removeprefix(PACKAGE_PREFIX)
    pretrained = (ROOT / "models" / "pretrained.txt").read_text(encoding="utf-8")
    assert find_spec(package)
    assert f"{package.replace('_', '-')}==" in pretrained

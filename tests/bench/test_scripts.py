"""Every script of this folder accepts the flags in its docstring, and the cheap scripts run.

The tests find a new script by themselves. If it can run in a few seconds, add its flags to `SMALL`.
"""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
SCRIPTS = sorted(
    path.stem
    for path in FOLDER.glob("*.py")
    if path.stem != "__init__" and not path.stem.startswith("test_")
)

SMALL = {
    "feedback": "--queries 20 --events 100 --seconds 1 --turns 1 --kills 1",
    "fuzz_files": "--count 1 --only labels.jsonl",
    "fuzz_http": "--count 60 --hang-s 60",
    "fuzz_manifest": "--count 50",
    "kill_nine": "--rounds 1 --labels 500",
}


def usage(script: str) -> str:
    """The arguments of the command in the script's docstring."""
    text = (FOLDER / f"{script}.py").read_text(encoding="utf-8").replace("\\\n", " ")
    [command] = re.findall(rf"^    python -m tests\.bench\.{script}\b(.*)$", text, re.MULTILINE)
    return command


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_knows_the_flags_that_its_docstring_shows(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")
    assert not ended.value.code
    flags = set(re.findall(r"--[a-z][a-z0-9-]*", capsys.readouterr().out))
    assert set(re.findall(r"--[a-z][a-z0-9-]*", usage(script))) <= flags


@pytest.mark.parametrize("script", SMALL)
def test_a_cheap_script_runs(script: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", f"tests.bench.{script}", *SMALL[script].split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.strip()

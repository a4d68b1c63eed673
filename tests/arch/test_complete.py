"""`--complete`, under which CI runs: whatever is left out fails, unless it needs a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LEFT_OUT = """
import pytest

@pytest.fixture
def browser():
    pytest.skip("no chromium")

@pytest.mark.skipif(True, reason="no promtool")
def test_mark(): pass

def test_fixture(browser): pass

def test_call(): pytest.importorskip("nothing_of_that_name", reason="no peers")

@pytest.mark.gpu
@pytest.mark.skipif(True, reason="no card")
def test_gpu(): pass

@pytest.mark.xfail
def test_known_fault(): assert False
"""
MODULE = 'import pytest\npytest.skip("no module", allow_module_level=True)\n'


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu\n")
    (tmp_path / "test_left_out.py").write_text(LEFT_OUT)
    (tmp_path / "test_module.py").write_text(MODULE)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"]
        return subprocess.run(
            [*command, "-ra", *options, str(tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_without_it_a_run_passes_and_says_what_it_left_out(run) -> None:
    done = run()
    assert done.returncode == 0, done.stdout
    assert "5 skipped, 1 xfailed" in done.stdout
    assert "5 tests were left out, for the reasons below" in done.stdout


def test_with_it_each_skip_fails_with_its_reason_but_for_want_of_a_gpu(run) -> None:
    done = run("--complete", "--continue-on-collection-errors")
    assert done.returncode != 0
    assert "1 failed, 1 skipped, 1 xfailed, 3 errors" in done.stdout
    for reason in ("no chromium", "no promtool", "no peers", "no module"):
        assert f"--complete leaves no test out, but this one was: {reason}" in done.stdout
    assert "no card" in done.stdout

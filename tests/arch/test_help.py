"""--help is quick because it imports nothing heavy: that is what is checked, not the clock."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "faiss", "onnxruntime", "tokenizers", "scipy", "fastapi", "matplotlib")

CODE = """
import runpy, sys
sys.argv = [{package!r}, "--help"]
try:
    runpy.run_module({package!r}, run_name="__main__", alter_sys=True)
except SystemExit as exc:
    assert not exc.code, exc.code
print("heavy:", [name for name in {heavy} if name in sys.modules])
"""


@pytest.mark.parametrize("package", ["service", "models", "loadtest"])
def test_help_imports_nothing_heavy(package: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(package=package, heavy=HEAVY)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    assert done.stdout.strip().endswith("heavy: []"), done.stdout.splitlines()[-1]

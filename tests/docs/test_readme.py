"""The README's commands work, and `make help` lists what there is."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.tiny_job import N_LABELS, write_tiny_job

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def commands(first: str) -> list[list[str]]:
    """Command lines of the README's code blocks that start with a word, comments cut."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
    lines = [line for kind, block in blocks if not kind for line in block.splitlines()]
    split = [shlex.split(line, comments=True) for line in lines if line.startswith(f"{first} ")]
    assert split, f"the README has no {first} command"
    return split


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))


def test_make_help_has_no_ghosts():
    shown = subprocess.run(
        ["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[0] for line in shown.splitlines()} == targets()


def test_make_targets_of_the_readme_exist():
    named = {command[1] for command in commands("make")}
    named |= set(re.findall(r"`make ([a-z]+)`", README))
    assert named <= targets()


def test_readme_is_one_screen_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 120
    for link in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / link).exists(), link


def test_load_test_command_is_understood():
    [[_, *arguments]] = commands("python")
    help_text = subprocess.run(
        [sys.executable, *arguments[:3], "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert all(flag in help_text for flag in arguments if flag.startswith("--"))


@pytest.mark.slow
def test_make_demo_trains_seals_and_serves_the_readmes_query(tmp_path):
    """With a tiny configuration in place of the shipped one, twice: the second time finds it."""
    if not (ROOT / ".venv" / ".installed").is_file():
        pytest.skip("not in the .venv of `make setup`")
    write_tiny_job(tmp_path)
    [curl] = commands("curl")
    body = json.loads(curl[curl.index("-d") + 1])
    for printed in ("epoch 1:", "is sealed already"):
        url, output = serve_demo(tmp_path)
        assert printed in output
        assert "try: curl" in output
        answer = ask_and_stop(url, body)
        [result] = answer["results"]
        assert len(result["labels"]) == min(body["k"], N_LABELS)


def serve_demo(folder: Path) -> tuple[tuple[subprocess.Popen, str], str]:
    """`make demo` until it listens: the process, its address, and what it printed."""
    variables = [f"CONFIG={folder / 'tiny.toml'}", f"VAR={folder / 'var'}", "PORT=0"]
    process = subprocess.Popen(
        ["make", "demo", *variables],
        cwd=ROOT,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if '"serving"' in line:
            return (process, json.loads(line)["url"]), seen
    process.stdout.close()
    pytest.fail(f"make demo ended with {process.wait()} before it served:\n{seen}")


def ask_and_stop(served: tuple[subprocess.Popen, str], body: dict) -> dict:
    process, url = served
    try:
        answer = httpx.post(f"{url}/v1/recommend", json=body, timeout=30)
        assert answer.status_code == 200
        return answer.json()
    finally:
        # Twice: the first signal starts the drain, the second skips its delay.
        os.killpg(process.pid, signal.SIGTERM)
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)

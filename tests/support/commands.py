"""The real commands of both halves, as processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", *arguments]


@contextmanager
def serving(bundle: Path, environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen, str]]:
    """The service on a free port: the process, and its address once it listens."""
    process = subprocess.Popen(
        [*command("service", "--bundle", str(bundle), "--port", "0"), "--drain-delay-s", "0"],
        cwd=ROOT,
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            record = json.loads(line)
            if record.get("url"):
                break
        else:
            pytest.fail(f"the service ended with {process.wait()} before it listened")
        yield process, record["url"]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()

"""The locustfile works with the command its docstring shows; in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

import loadtest.queries
from tests.support.fake_service import fake_service

LOCUSTFILE = Path(loadtest.queries.__file__).with_name("locustfile.py")


@pytest.mark.slow
def test_users_get_answers():
    with fake_service() as service:
        command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--host", service.url]
        done = subprocess.run(
            [*command, "--headless", "--users", "2", "--spawn-rate", "2", "--run-time", "3s"],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert len(service.bodies) >= 2
    assert {body["k"] for body in service.bodies} == {10}

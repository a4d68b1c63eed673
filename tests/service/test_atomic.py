"""Whole or not at all, and nothing left over for long."""

import subprocess
import sys
from pathlib import Path

from service.atomic import write_atomic

KILLED = """
import os, sys
from pathlib import Path
from service.atomic import write_atomic

def die_half_way(temporary):
    temporary.write_text("ha")
    os._exit(1)

write_atomic(Path(sys.argv[1]), die_half_way)
"""


def test_the_next_write_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    path = tmp_path / "file[1].txt"
    path.write_text("old")
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, timeout=60)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    write_atomic(path, lambda temporary: temporary.write_text("new"))
    assert [(left.name, left.read_text()) for left in tmp_path.iterdir()] == [(path.name, "new")]

import os
from pathlib import Path

import pytest

from service.process.usage import group_usage, n_threads, proportional_bytes, started_s

TICKS_S = 1 / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "stat").write_text("cpu 1 2\nbtime 1000\n")
    return tmp_path


def add(proc: Path, pid: int, pss_kb: int, times: tuple[int, int, int, int], fds: int = 0) -> None:
    folder = proc / str(pid)
    (folder / "fd").mkdir(parents=True)
    fields = ["S", *"0" * 10, *map(str, times), *"0" * 4, "500"]
    (folder / "stat").write_text(f"{pid} (a (strange) name) " + " ".join(fields))
    (folder / "smaps_rollup").write_text(f"00-ff ---p rollup\nRss: 9 kB\nPss: {pss_kb} kB\n")
    for number in range(fds):
        (folder / "fd" / str(number)).touch()


def test_use_of_a_group_counts_shared_pages_once_and_children_that_ended(proc: Path) -> None:
    add(proc, 1, 100, (10, 20, 300, 400), fds=2)
    add(proc, 2, 50, (1, 2, 0, 0), fds=3)
    usage = group_usage(1, [2], proc)
    assert usage.cpu_s == pytest.approx((10 + 20 + 300 + 400 + 1 + 2) * TICKS_S)
    assert usage.memory_bytes == 150 * 1024
    assert usage.open_fds == 5


def test_a_process_that_has_gone_counts_as_nothing(proc: Path) -> None:
    add(proc, 1, 100, (1, 0, 0, 0))
    assert group_usage(1, [99], proc).memory_bytes == 100 * 1024


def test_start_is_unix_time(proc: Path) -> None:
    add(proc, 1, 1, (0, 0, 0, 0))
    assert started_s(1, proc) == pytest.approx(1000 + 500 * TICKS_S)
    assert started_s(99, proc) == 0.0


def test_this_process_has_memory_and_threads() -> None:
    assert proportional_bytes(os.getpid()) > 1 << 20
    assert n_threads() >= 1

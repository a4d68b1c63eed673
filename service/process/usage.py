"""What a group of processes uses, read from /proc: CPU time, memory, open files."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds since the start, bytes of memory with shared pages once, open files."""

    cpu_s: float
    memory_bytes: int
    open_fds: int


def group_usage(master: int, workers: Iterable[int], proc: Path = PROC) -> Usage:
    """The use of a master and its children; the CPU time of children that ended is counted too.

    A process that has gone meanwhile counts as nothing; so does everything where /proc is not.
    """
    cpu_s, memory, fds = _cpu_s(proc / str(master), with_ended_children=True), 0, 0
    for pid in workers:
        cpu_s += _cpu_s(proc / str(pid))
        memory += proportional_bytes(pid, proc)
        fds += _open_fds(proc / str(pid))
    memory += proportional_bytes(master, proc)
    return Usage(cpu_s, memory, fds + _open_fds(proc / str(master)))


def proportional_bytes(pid: int, proc: Path = PROC) -> int:
    """Proportional set size of a process: its own pages, and its share of the shared ones."""
    for line in _read(proc / str(pid) / "smaps_rollup").splitlines():
        name, *rest = line.split()
        if name == "Pss:":
            return int(rest[0]) * 1024
    return 0


def started_s(pid: int, proc: Path = PROC) -> float:
    """Start of a process as Unix time; 0 where /proc does not tell."""
    fields = _stat(proc / str(pid))
    boot = [line.split()[1] for line in _read(proc / "stat").splitlines() if line[:6] == "btime "]
    return float(boot[0]) + int(fields[19]) / _ticks() if fields and boot else 0.0


def n_threads(proc: Path = PROC) -> int:
    """Threads of this process, native ones counted; 1 where /proc does not tell."""
    try:
        return len(os.listdir(proc / "self" / "task"))
    except OSError:
        return 1


def _cpu_s(folder: Path, with_ended_children: bool = False) -> float:
    fields = _stat(folder)
    return sum(map(int, fields[11 : 15 if with_ended_children else 13])) / _ticks()


def _stat(folder: Path) -> list[str]:
    """Fields of `stat` after the name, which may hold spaces and brackets of its own."""
    return _read(folder / "stat").rpartition(")")[2].split()


def _open_fds(folder: Path) -> int:
    try:
        return len(os.listdir(folder / "fd"))
    except OSError:
        return 0


def _ticks() -> int:
    return os.sysconf("SC_CLK_TCK")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

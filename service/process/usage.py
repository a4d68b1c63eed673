"""CPU time, memory and open files of a group of processes, read from /proc (man 5 proc)."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class Usage:
    """What processes use.

    `cpu_s` counts from their start; `memory_bytes` counts shared pages once.
    """

    cpu_s: float
    memory_bytes: int
    open_fds: int


def group_usage(master: int, workers: Iterable[int], proc: Path = PROC) -> Usage:
    """What a master and its workers use together. Includes the CPU time of workers that have ended.

    `master` and `workers` are process ids. A process that has ended meanwhile counts as zero. All
    values are zero on a system without /proc.
    """
    cpu_s, memory, fds = _cpu_s(proc / str(master), with_ended_children=True), 0, 0
    for pid in workers:
        cpu_s += _cpu_s(proc / str(pid))
        memory += proportional_bytes(pid, proc)
        fds += _open_fds(proc / str(pid))
    memory += proportional_bytes(master, proc)
    return Usage(cpu_s, memory, fds + _open_fds(proc / str(master)))


def proportional_bytes(pid: int, proc: Path = PROC) -> int:
    """Proportional set size of a process in bytes: its own pages, and its share of shared pages."""
    for line in _read(proc / str(pid) / "smaps_rollup").splitlines():
        name, *rest = line.split()
        if name == "Pss:":
            return int(rest[0]) * 1024
    return 0


def started_s(pid: int, proc: Path = PROC) -> float:
    """When a process started, as Unix time in seconds; 0 where /proc does not tell."""
    fields = _stat(proc / str(pid))
    boot = [line.split()[1] for line in _read(proc / "stat").splitlines() if line[:6] == "btime "]
    return float(boot[0]) + int(fields[19]) / _ticks() if fields and boot else 0.0


def n_threads(proc: Path = PROC) -> int:
    """Number of threads of this process, native ones included; 1 where /proc does not tell."""
    try:
        return len(os.listdir(proc / "self" / "task"))
    except OSError:
        return 1


def _cpu_s(folder: Path, with_ended_children: bool = False) -> float:
    fields = _stat(folder)
    return sum(map(int, fields[11 : 15 if with_ended_children else 13])) / _ticks()


def _stat(folder: Path) -> list[str]:
    """Fields of `stat` after the process's name. The name itself may hold spaces and brackets."""
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

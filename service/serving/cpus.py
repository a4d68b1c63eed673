"""How many CPUs this process may use: limited by its affinity and the quota of its control group.

`os.cpu_count()` counts the CPUs of the machine. A container may be limited to two of sixty-four; if
it started sixty-four lanes, the kernel would throttle them most of the time. Reads cgroup v2 and v1
(in Linux: Documentation/admin-guide/cgroup-v2.rst, Documentation/scheduler/sched-bwc.rst).
"""

import os
from pathlib import Path
from typing import Final

CGROUP_ROOT: Final = Path("/sys/fs/cgroup")
PROC_CGROUP: Final = Path("/proc/self/cgroup")


def usable_cpus(root: Path = CGROUP_ROOT, membership: Path = PROC_CGROUP) -> int:
    """Whole CPUs available, at least 1; a quota of 2.5 CPUs counts as 2."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = cgroup_quota(root, membership)
    return max(1, int(min(affinity or 1, quota if quota is not None else float("inf"))))


def cgroup_quota(root: Path = CGROUP_ROOT, membership: Path = PROC_CGROUP) -> float | None:
    """The lowest quota, in CPUs, of this process's group and all above it; None without one."""
    quotas = []
    for controllers, group in _memberships(membership):
        if controllers == "":
            quotas += [_quota_v2(folder) for folder in _upwards(root, group)]
        elif "cpu" in controllers.split(","):
            for mount in (root / "cpu", root / controllers):
                quotas += [_quota_v1(folder) for folder in _upwards(mount, group)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _memberships(path: Path) -> list[tuple[str, str]]:
    """(controllers, group) of each line `id:controllers:group`; v2's line names no controllers."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    parts = [line.split(":", 2) for line in lines]
    return [(part[1], part[2]) for part in parts if len(part) == 3]


def _upwards(root: Path, group: str) -> list[Path]:
    """The folder of a group, and all above it up to `root`."""
    # In a container the group may lie outside the mounted tree. The root is then the group itself.
    folder = root / group.lstrip("/")
    inside = [folder, *folder.parents]
    return inside[: inside.index(root) + 1] if ".." not in folder.parts else [root]


def _quota_v2(folder: Path) -> float | None:
    words = _words(folder / "cpu.max")
    return _share(words[0], words[1]) if len(words) == 2 else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
    return _share(quota[0], period[0]) if quota and period else None


def _share(quota: str, period: str) -> float | None:
    """A quota in CPUs, None for no limit: v2 writes `max` for that, v1 writes -1."""
    if not (quota.isdecimal() and period.isdecimal()) or int(period) == 0:
        return None
    return int(quota) / int(period)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:
        return []

import os
from pathlib import Path

import pytest

from service.serving.cpus import cgroup_quota, usable_cpus


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a/cpu.max": "100000 100000", "a/b/cpu.max": "400000 100000"}, 1.0),
        ("0::/../other\n", {"cpu.max": "300000 100000"}, 3.0),
        (
            "4:cpu,cpuacct:/x\n0::/\n",
            {"cpu/x/cpu.cfs_quota_us": "150000", "cpu/x/cpu.cfs_period_us": "100000"},
            1.5,
        ),
        (
            "4:cpu:/gone\n",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            None,
        ),
        ("0::/\n", {"cpu.max": "100000 0"}, None),
        ("nonsense\n", {"cpu.max": "100000 100000"}, None),
    ],
)
def test_quota_is_read_from_both_versions(
    tmp_path: Path, membership: str, files: dict[str, str], quota: float | None
) -> None:
    root = lay(tmp_path / "cgroup", {"keep": "", **files})
    lay(tmp_path, {"self": membership})
    assert cgroup_quota(root, tmp_path / "self") == quota


def test_no_control_groups_at_all_means_no_quota(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path / "none", tmp_path / "none") is None


@pytest.mark.parametrize(("cpu_max", "expected"), [("50000 100000", 1), ("2500000 100000", 2)])
def test_usable_cpus_is_whole_and_at_least_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_max: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 7}, raising=False)
    lay(tmp_path, {"self": "0::/\n", "cpu.max": cpu_max})
    assert usable_cpus(tmp_path, tmp_path / "self") == expected

"""Serving with workers: which process opens the bundles, and what the master knows and lets go.

What a running service does is in tests/service/test_main.py.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from service.errors import BundleNotFound, SettingsInvalid
from service.process.serve import open_engines
from tests.support.bundle_root import reseal
from tests.support.fakes import fake_settings
from tests.support.metrics import samples
from tests.support.processes import run_service


def test_every_bundle_that_the_settings_name_is_opened_in_their_order(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    other = reseal(tiny_bundle, tmp_path / "other", name="other")
    settings = fake_settings(bundle=other, more_bundles=(tiny_bundle,), device="cpu")
    assert [engine.manifest.name for engine in open_engines(settings)] == ["other", "tiny"]


def test_a_bundle_that_is_missing_among_several_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    settings = fake_settings(bundle=tiny_bundle, more_bundles=(tmp_path,), device="cpu")
    with pytest.raises(BundleNotFound, match=str(tmp_path)):
        open_engines(settings)


def test_rules_hold_for_a_model_of_any_bundle_and_for_no_stranger(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    other = reseal(tiny_bundle, tmp_path / "other", name="other")
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps({"other": {"exclude": {"ids": ["L000"]}}}))
    values = {"bundle": tiny_bundle, "device": "cpu", "label_rules": rules}
    assert len(open_engines(fake_settings(**values, more_bundles=(other,)))) == 2
    with pytest.raises(
        SettingsInvalid, match="rules for the model 'other', but this service has only tiny"
    ):
        open_engines(fake_settings(**values))


# Threads of the encoder and a GPU's context do not survive a fork.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "openers"),
    [
        (("--device", "cpu"), {None}),
        (("--device", "cpu", "--intra-op-threads", "2"), {0, 1}),
        (("--device", "cuda"), {0, 1}),
    ],
)
def test_the_master_opens_what_survives_a_fork_and_workers_the_rest(
    tmp_path: Path, arguments: tuple[str, ...], openers: set[int | None]
) -> None:
    done = run_service("--bundle", str(tmp_path), "--port", "0", "--workers", "2", *arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    *logged, last = done.stderr.splitlines()
    entries = [json.loads(line) for line in logged]
    tried = {e["worker"] for e in entries if e["message"].startswith("cannot serve")} or {None}
    assert tried == openers
    assert last.startswith("python -m service: ")
    assert all("holds neither" in e["message"] for e in entries if e["message"][:6] == "cannot")


# The metrics of a master are its whole process's, so it is made in one of its own.
MASTER = """
import mmap, os, socket, sys
from prometheus_client import CollectorRegistry, generate_latest
from service.observe.worker_metrics import SharedMetrics
from service.process.serve import MasterWatcher

metrics, all_end = SharedMetrics(2), mmap.mmap(-1, 1)
listener = socket.create_server(("127.0.0.1", 0))
watcher = MasterWatcher(metrics, [listener], all_end)
watcher.on_running([os.getpid()] * 3)
watcher.on_replaced(1)
watcher.on_replaced(0)
watcher.on_silent(0)
print(all_end[0], listener.fileno() >= 0, file=sys.stderr)
watcher.on_stopping()
print(all_end[0], listener.fileno() >= 0, file=sys.stderr)
registry = CollectorRegistry()
registry.register(metrics.collector())
sys.stdout.write(generate_latest(registry).decode())
"""


def test_the_master_counts_its_workers_and_lets_go_of_the_ports_when_it_stops() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MASTER], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["0 True", "1 False"]
    page = samples(done.stdout)
    assert page["astrolabe_workers"] == 3
    assert page["astrolabe_worker_restarts_total"] == 2
    assert page["astrolabe_worker_hangs_total"] == 1
    assert page["process_start_time_seconds"] > 1e9
    assert page["process_resident_memory_bytes"] > 1 << 20

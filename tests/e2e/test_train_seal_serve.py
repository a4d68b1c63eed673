"""From raw text to an answer over HTTP, with the real commands in real processes."""

import signal
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest

from models.data.formats import open_dataset
from tests.support.commands import ROOT, command, serving
from tests.support.tiny_job import write_tiny_job

pytestmark = pytest.mark.slow

NO_TORCH = "raise ImportError('the service must not import torch')"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `python -m models all` has sealed a bundle."""
    folder = tmp_path_factory.mktemp("e2e")
    write_tiny_job(folder)
    train = command("models", "all", "--config", str(folder / "tiny.toml"))
    done = subprocess.run(
        [*train, "--var", str(folder / "var")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "recall@10" in done.stdout
    return folder


def test_answers_over_http_are_as_good_as_the_sealed_figures(trained, tmp_path):
    """Every test text, through HTTP, in a process that has no torch to import."""
    (tmp_path / "torch.py").write_text(NO_TORCH)
    (tmp_path / "models.py").write_text(NO_TORCH.replace("torch", "models"))
    test = open_dataset(trained / "data").test
    hits = []
    with serving(trained / "var" / "bundles" / "tiny", {"PYTHONPATH": str(tmp_path)}) as (
        process,
        url,
    ):
        with httpx.Client(base_url=url, timeout=30) as client:
            info = client.get("/v1/info").json()
            for start in range(0, len(test), 50):
                texts = test.titles[start : start + 50]
                body = {"query": texts, "k": 5, "effort": "balanced"}
                answer = client.post("/v1/recommend", json=body)
                assert answer.status_code == 200, answer.text
                hits += [result["labels"][0]["id"] for result in answer.json()["results"]]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    catalogue = open_dataset(trained / "data").labels.uids
    rows = {uid: row for row, uid in enumerate(catalogue)}
    right = test.labels[np.arange(len(test)), [rows[uid] for uid in hits]]
    p_at_1 = 100 * float(np.asarray(right).mean())
    assert p_at_1 == pytest.approx(info["quality"]["metrics"]["p1"], abs=0.01)
    assert p_at_1 > 60


def test_a_flipped_byte_keeps_the_service_from_starting(trained, tmp_path):
    bundles = trained / "var" / "bundles" / "tiny"
    source = bundles / (bundles / "CURRENT").read_text().strip()
    bad = tmp_path / "bundle"
    bad.mkdir()
    for path in source.iterdir():
        data = bytearray(path.read_bytes())
        if path.name == "index.faiss":
            data[len(data) // 2] ^= 1
        (bad / path.name).write_bytes(data)
    done = subprocess.run(
        command("service", "--bundle", str(bad), "--port", "0"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "index.faiss has SHA-256" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_killed_training_leaves_no_bundle_and_the_next_one_ends_it(tmp_path):
    """SIGKILL in mid-training, when the first epoch is surely in the checkpoint."""
    write_tiny_job(tmp_path)
    train = [*command("models", "all", "--config", str(tmp_path / "tiny.toml"))]
    train += ["--var", str(tmp_path / "var")]
    process = subprocess.Popen(train, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 2:"):
            break
    process.kill()
    process.wait()
    process.stderr.close()
    assert not (tmp_path / "var" / "bundles").exists()
    done = subprocess.run(train, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "resuming in epoch" in done.stderr
    assert (tmp_path / "var" / "bundles" / "tiny" / "CURRENT").is_file()

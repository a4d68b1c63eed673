"""The loop of docs/learning-loop.md in small, with the real commands in real processes."""

import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from models.data.formats import open_dataset, write_dataset
from tests.support.commands import ROOT, command, serving
from tests.support.tiny_job import tiny_dataset, write_tiny_job

pytestmark = pytest.mark.slow

ADMIN = {"authorization": "Bearer admin"}


def run(*arguments: str) -> str:
    done = subprocess.run(
        command("models", *arguments), cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def newest(bundles: Path) -> str:
    return (bundles / "CURRENT").read_text().strip()


def test_what_users_accept_comes_back_as_a_better_bundle(tmp_path: Path) -> None:
    whole, data, bundles = tiny_dataset(), tmp_path / "data", tmp_path / "var" / "bundles" / "tiny"
    write_dataset(data, replace(whole, train=whole.train.take(range(400))))
    write_tiny_job(tmp_path)
    job = ["all", "--config", str(tmp_path / "tiny.toml"), "--var", str(tmp_path / "var")]
    job += ["--set", "index.kind=flat"]
    run(*job)
    first = newest(bundles)

    # Serve and collect: users accept the labels of texts that the model has not seen.
    users = whole.train.take(range(400, 900))
    environment = {
        "ASTROLABE_FEEDBACK_DIR": str(tmp_path / "feedback"),
        "ASTROLABE_FEEDBACK_ANSWERS_SHARE": "1",
        "ASTROLABE_FEEDBACK_TEXTS": "true",
        "ASTROLABE_WORKERS": "2",
    }
    with serving(bundles, environment) as (process, url):
        with httpx.Client(base_url=url, timeout=30) as client:
            for start in range(0, len(users), 50):
                texts = users.titles[start : start + 50]
                answer = client.post("/v1/recommend", json={"query": texts})
                request_id = answer.headers["x-request-id"]
                cells = users.labels[start : start + 50].tocoo()
                events = [
                    {"request_id": request_id, "query": int(row), "event": "accepted"}
                    | {"label": whole.labels.uids[label]}
                    for row, label in zip(*cells.coords, strict=True)
                ]
                taken = client.post("/v1/feedback", json={"events": events})
                assert taken.status_code == 202, taken.text
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0

    # Gather, train on, and pass the gate.
    next_data = tmp_path / "next"
    report = run(
        *("gather", "--feedback", str(tmp_path / "feedback"), "--data", str(data)),
        *("--out", str(next_data)),
    )
    assert "new test points" in report
    gathered, known = open_dataset(next_data), set(whole.train.titles)
    assert len(gathered.train) > 800
    assert set(gathered.train.titles) <= known
    settings = [f"data.path={next_data}", f"train.start_from={bundles / first}"]
    settings += [f"release.not_worse_than={bundles / first}", "train.epochs=2"]
    run(*job, *(part for setting in settings for part in ("--set", setting)))
    second = newest(bundles)
    assert second != first

    # Canary and promote.
    admin = {"ASTROLABE_ADMIN_KEY": "admin", "ASTROLABE_BUNDLE_ROOT": str(bundles)}
    with (
        serving(bundles / first, admin) as (_, url),
        httpx.Client(base_url=url, timeout=60, headers=ADMIN) as client,
    ):
        assert client.get("/v1/info").json()["bundle_id"] == first
        canary = {"bundle": second, "percent": 50}
        assert client.post("/admin/bundles/canary", json=canary).status_code == 200
        promoted = client.post("/admin/bundles/activate", json={"bundle": second})
        assert promoted.status_code == 200, promoted.text
        answer = client.post("/v1/recommend", json={"query": users.titles[0]})
        assert answer.json()["bundle_id"] == second

"""Two processes compute what one does: losses, validation figures, weights; and go on after a kill.

Real processes over gloo on the loopback. A batch of 899 of the 900
rows leaves a last one of a single row, for which one of the two processes has nothing to encode.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models import stages
from models.__main__ import main
from models.runs import CHECKPOINT_FILE, METRICS_FILE, MODEL_FILE, TENSORBOARD_FOLDER
from models.training.distributed import World
from tests.support.tiny_job import write_tiny_job

ROOT = Path(__file__).resolve().parents[3]
ONE_ROW_LEFT = "train.batch_size=899"
EPOCHS = 3
SHORT = f"train.epochs={EPOCHS}"
CASES = {
    "astra": ["train.batch_size=128", "train.accumulate=2", SHORT],
    "softmax": ["train.batch_size=128", "method.softmax_share=0.5", SHORT],
    "full-bce": ["method.kind=full-bce", ONE_ROW_LEFT, SHORT],
    "end-to-end": ["encoder.kind=bag+transformer", "encoder.frozen=false", ONE_ROW_LEFT, SHORT],
    "frozen": ["encoder.kind=bag+transformer", "train.batch_size=256", SHORT],
}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def under_torchrun(*command):
    """Two processes of `python COMMAND`, and what they said."""
    master = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *master, *command],
        cwd=ROOT,
        env=os.environ
        | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )


def train_in(folder, overrides):
    """The arguments of `python -m models` that train the job in `folder`."""
    settings = [part for override in overrides for part in ("--set", override)]
    where = ["--config", str(folder / "tiny.toml"), "--var", str(folder / "var")]
    return ["train", *where, *settings]


def job_in(folder, *overrides):
    folder.mkdir()
    return stages.TrainingJob.open(write_tiny_job(folder, *overrides), folder / "var")


def history(job):
    lines = (job.run.folder / METRICS_FILE).read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_alike(job, other):
    """Losses to 1e-5, figures to the digit, weights close."""
    ours, theirs = history(job), history(other)
    assert [line["epoch"] for line in ours] == [line["epoch"] for line in theirs]
    for name in ("loss", "validation_p_at_1", "validation_p_at_5"):
        assert [line[name] for line in ours] == pytest.approx(
            [line[name] for line in theirs], rel=1e-5
        )
    one, two = (load_file(each.run.folder / MODEL_FILE) for each in (job, other))
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], atol=2e-3), name


# One pair of processes for all cases saves minutes; a process joins its world only once.
EVERY_CASE = """
import json, sys
from pathlib import Path
from models.__main__ import main
from models.training.distributed import World
world, leave = World.join(), World.leave
World.join, World.leave = classmethod(lambda cls: world), lambda self: None
codes = [main(arguments) for arguments in json.loads(sys.argv[1])]
leave(world)
threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
print("still running:", *threads)
sys.exit(max(codes))
"""


@pytest.fixture(scope="module")
def spread(tmp_path_factory, bert):
    """Every case, each with its job, trained by the same two processes."""
    folder = tmp_path_factory.mktemp("spread")
    settings = {
        case: [f"encoder.source={bert}", *changes] if "encoder.kind" in changes[0] else changes
        for case, changes in CASES.items()
    }
    jobs = {case: job_in(folder / case, *changes) for case, changes in settings.items()}
    commands = [train_in(folder / case, changes) for case, changes in settings.items()]
    (folder / "every_case.py").write_text(EVERY_CASE)
    done = under_torchrun(str(folder / "every_case.py"), json.dumps(commands))
    return jobs, settings, done


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
def test_two_processes_train_what_one_trains(tmp_path, spread, case):
    jobs, settings, done = spread
    assert done.returncode == 0, done.stderr
    alone = job_in(tmp_path / "alone", *settings[case])
    stages.run_train(alone)
    assert_alike(jobs[case], alone)


@pytest.mark.slow
def test_only_the_leading_process_writes(spread):
    jobs, _, done = spread
    assert "warn" not in done.stderr.lower()
    for job in jobs.values():
        assert not (job.run.folder / CHECKPOINT_FILE).exists()
        assert len(list((job.run.folder / TENSORBOARD_FOLDER).iterdir())) == 1
    assert len(list(jobs["frozen"].cache.iterdir())) == 2
    assert done.stderr.count("encoding 900 texts once") == 1


@pytest.mark.slow
def test_no_thread_of_the_backend_outlives_the_job(spread):
    # One that does may abort the process at its very end, after all work is done.
    *_, done = spread
    assert done.stdout.count("still running:") == 2
    assert "gloo" not in done.stdout


DYING = """
import os, signal, sys
from models.training import loop
from models.__main__ import main
step = loop.Loop._step
def dying(self, picked):
    if self.progress.step == 13 and not self.leads:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, picked)
loop.Loop._step = dying
sys.exit(main())
"""


@pytest.mark.slow
def test_a_killed_job_goes_on_in_two_processes_and_in_one(tmp_path):
    """Killed in the second epoch: two processes take over the checkpoint, and so does one alone."""
    changes = ["train.batch_size=128", "train.checkpoint_seconds=1e-9", SHORT]
    whole, cut, alone = (job_in(tmp_path / name, *changes) for name in ("whole", "cut", "alone"))
    (tmp_path / "dying.py").write_text(DYING)
    command = train_in(tmp_path / "cut", changes)
    assert under_torchrun(str(tmp_path / "dying.py"), *command).returncode != 0
    for name in (CHECKPOINT_FILE, METRICS_FILE, MODEL_FILE):
        shutil.copy(cut.run.folder / name, alone.run.folder / name)
    done = under_torchrun("-m", "models", *command)
    assert done.returncode == 0, done.stderr
    said = [line.split(":")[0] for line in done.stderr.splitlines()]
    assert said[1:] == ["resuming in epoch 2 at step 5", "epoch 2", "epoch 3"]
    for job in (alone, whole):
        stages.run_train(job)
    assert_alike(cut, whole)
    assert_alike(alone, whole)


def test_stages_that_are_for_one_process_say_so(tmp_path, monkeypatch, capsys):
    write_tiny_job(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for stage in ("all", "export", "release"):
        assert main([stage, "--config", str(tmp_path / "tiny.toml")]) == 1
        assert f"2 processes of {stage}, which is for one" in capsys.readouterr().err


def test_shares_are_contiguous_and_cover_every_row():
    for size in (1, 2, 3, 7):
        for n in (0, 1, 5, 20):
            shares = [World(rank, size).share(n) for rank in range(size)]
            rows = [row for share in shares for row in range(n)[share]]
            assert rows == list(range(n))


def test_one_process_gets_back_what_it_gave():
    world = World.join()
    rows = torch.ones(3, 2, requires_grad=True)
    assert world == World(0, 1)
    assert world.leads
    assert world.gather_rows(rows, 3) is rows
    assert world.gather(rows, 3) is rows
    assert world.sum(rows) is rows
    assert world.agree(2.5) == 2.5
    assert world.leader_first(lambda: "done") == "done"
    world.wait()
    world.leave()

"""A run folder: what was asked, what happened, and what a later stage or a resumed run needs.

    var/runs/<config name>/<digest>/
        run.json              resolved config, hashes of data and split, code revision
        metrics.jsonl         one line an epoch
        checkpoint.safetensors   everything needed to go on, removed when training is done
        pretrained.safetensors   the encoder after contrastive pre-training, where configured
        model.safetensors     the best epoch's weights, tokenizer.json beside it
        encoder.fp32.onnx and the other precisions, index.*, calibration.json, measured.json
                              left by the later stages

The digest is over config and data, so asking again finds the same folder and goes on from there,
unless other code has drawn another split since.
Every write is atomic: a kill leaves the old file or the new one.
"""

import hashlib
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.config import Config
from models.errors import RunError
from service.atomic import write_atomic
from service.version import __version__

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINT_FILE = "checkpoint.safetensors"
PRETRAIN_CHECKPOINT_FILE = "pretrain-checkpoint.safetensors"
PRETRAINED_FILE = "pretrained.safetensors"
FAILED_BATCH_FILE = "failed_batch.json"
TENSORBOARD_FOLDER = "tensorboard"
ARCHITECTURE_FILE = "backbone.json"
TEACHER_FILE = "teacher.npz"
MODEL_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
INDEX_FILE = "index.faiss"
CALIBRATION_FILE = "calibration.json"
MEASURED_FILE = "measured.json"


@dataclass(frozen=True, slots=True)
class Run:
    """An open run folder and the configuration it belongs to."""

    folder: Path
    config: Config
    data_sha256: str

    def has(self, name: str) -> bool:
        """Whether a stage has left this file."""
        return (self.folder / name).is_file()

    def require(self, name: str, stage: str) -> Path:
        """The path of a file that `stage` leaves. Raises RunError where it has not run."""
        path = self.folder / name
        if not path.is_file():
            raise RunError(f"{path} is not there: run `python -m models {stage}` first")
        return path

    def log(self, record: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl; an epoch done again after a kill replaces its old line."""
        path = self.folder / METRICS_FILE
        records = map(json.loads, path.read_text("utf-8").splitlines()) if path.is_file() else ()
        kept = [old for old in records if _epoch_of(old) != _epoch_of(record)]
        text = "".join(json.dumps(line) + "\n" for line in [*kept, record])
        write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def measured(self) -> dict[str, Any]:
        """What the stages have measured so far."""
        path = self.folder / MEASURED_FILE
        return json.loads(path.read_bytes()) if path.is_file() else {}

    def record(self, **parts: Any) -> None:
        """Add parts to what was measured; a part measured again replaces the old one."""
        merged = self.measured() | parts
        write_atomic(
            self.folder / MEASURED_FILE,
            lambda path: path.write_text(json.dumps(merged, indent=1), encoding="utf-8"),
        )


def _epoch_of(record: dict[str, Any]) -> tuple[Any, Any]:
    return record.get("stage"), record["epoch"]


def encoder_file(precision: str) -> str:
    """Name of the encoder's graph in a precision, in a run folder and in a bundle."""
    return f"encoder.{precision}.onnx"


def open_run(root: Path, config: Config, data_sha256: str, split_sha256: str) -> Run:
    """The folder of this config on this data, made if it is not there.

    Raises RunError where the folder was begun with another split: its weights have seen points that
    would now judge them.
    """
    folder = root / "runs" / config.name / run_digest(config, data_sha256)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RUN_FILE
    if path.is_file():
        _check_same_split(folder, json.loads(path.read_bytes()), split_sha256)
    else:
        about = {
            "config": config.model_dump(),
            "data_sha256": data_sha256,
            "split_sha256": split_sha256,
            "code": {"version": __version__, "revision": code_revision()},
        }
        text = json.dumps(about, indent=1)
        write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return Run(folder, config, data_sha256)


def _check_same_split(folder: Path, about: dict[str, Any], split_sha256: str) -> None:
    if about.get("split_sha256") != split_sha256:
        raise RunError(
            f"{folder} was begun by code that drew other validation points, so what it holds "
            "has been trained on some of today's: delete that folder to start anew"
        )


def check_same_data(run: Run, data_sha256: str, split_sha256: str) -> None:
    """Raises RunError where a run that was read is of other data or another split."""
    if run.data_sha256 != data_sha256:
        raise RunError(
            f"{run.folder} is of data with SHA-256 {run.data_sha256[:12]}, {run.config.data.path} "
            f"holds {data_sha256[:12]}"
        )
    _check_same_split(run.folder, json.loads((run.folder / RUN_FILE).read_bytes()), split_sha256)


def find_run(root: Path, config: Config, data_sha256: str) -> Path:
    """The folder of a run of this config on this data, also of one that older code began.

    Newer code has more settings, hence another digest. Raises RunError where there is none.
    """
    for path in sorted((root / "runs" / config.name).glob(f"*/{RUN_FILE}")):
        run = read_run(path.parent)
        if (run.config, run.data_sha256) == (config, data_sha256):
            return run.folder
    raise RunError(f"{root / 'runs' / config.name} holds no run of this very configuration")


def read_run(folder: Path) -> Run:
    """The run that a folder holds. Raises RunError."""
    path = folder / RUN_FILE
    if not path.is_file():
        raise RunError(f"{folder} is no run folder: {RUN_FILE} is not there")
    about = json.loads(path.read_bytes())
    return Run(folder, Config.model_validate(about["config"]), about["data_sha256"])


def run_digest(config: Config, data_sha256: str) -> str:
    """Twelve hex digits that name this config on this data."""
    return hashlib.sha256(f"{config.digest}{data_sha256}".encode()).hexdigest()[:12]


def code_revision() -> str:
    """The commit of the working tree, marked where it has changes.

    Outside a clone, such as in an image, what SOURCE_REVISION says, or "unknown".
    """
    elsewhere = os.environ.get("SOURCE_REVISION", "unknown")
    root = Path(__file__).resolve().parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return elsewhere
    return done.stdout.strip() or elsewhere

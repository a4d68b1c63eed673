"""A run folder: the configuration of a run, its progress, and the files that its stages write.

    var/runs/<config name>/<digest>/
        run.json                 resolved configuration, hashes of data and split, code revision
        metrics.jsonl            one line an epoch, of pre-training too
        tensorboard/             curves
        tokenizer.json           the encoder's; backbone.json beside it for a transformer
        teacher.npz              the teacher's probabilities, if a teacher is configured
        pretrain-checkpoint.safetensors, checkpoint.safetensors
                                 the state to resume from, removed at the end
        pretrained.safetensors   the encoder after contrastive pre-training, if configured
        model.safetensors        the best epoch's weights
        label_ids.json, trained_on.npy
                                 labels, and hashes of the training texts, to go on from later
        failed_batch.json        the rows of the batch whose loss was no number
        encoder.fp32.onnx and the other precisions, index.*, memory.*, calibration.json, tune/
                                 from the later stages
        measured.json            the stages' measurements
        folds/1/, folds/2/, ...  the same files of the models that score for the second stage

The digest is over configuration and data. So the same command finds the same folder and resumes
there. It refuses a folder that older code began with another validation split.
Every write is atomic: after a kill there is the old file or the new one.
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
from service.atomic import write_text
from service.version import __version__

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINT_FILE = "checkpoint.safetensors"
PRETRAIN_CHECKPOINT_FILE = "pretrain-checkpoint.safetensors"
PRETRAINED_FILE = "pretrained.safetensors"
FAILED_BATCH_FILE = "failed_batch.json"
TENSORBOARD_FOLDER = "tensorboard"
FOLDS_FOLDER = "folds"
ARCHITECTURE_FILE = "backbone.json"
TEACHER_FILE = "teacher.npz"
MODEL_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
LABEL_IDS_FILE = "label_ids.json"
TRAINED_ON_FILE = "trained_on.npy"
INDEX_FILE = "index.faiss"
CALIBRATION_FILE = "calibration.json"
MEASURED_FILE = "measured.json"


@dataclass(frozen=True, slots=True)
class Run:
    """An open run folder, its configuration, and the SHA-256 (hex) of its data."""

    folder: Path
    config: Config
    data_sha256: str

    def has(self, name: str) -> bool:
        """Whether the folder holds this file."""
        return (self.folder / name).is_file()

    def require(self, name: str, stage: str) -> Path:
        """The path of a file that `stage` writes. Raises RunError if it is not there."""
        path = self.folder / name
        if not path.is_file():
            raise RunError(f"{path} is not there: run `python -m models {stage}` first")
        return path

    def log(self, record: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl; a repeated epoch, after a kill, replaces its old line."""
        path = self.folder / METRICS_FILE
        records = map(json.loads, path.read_text("utf-8").splitlines()) if path.is_file() else ()
        earlier = [old for old in records if _epoch_of(old) != _epoch_of(record)]
        text = "".join(json.dumps(line) + "\n" for line in [*earlier, record])
        write_text(path, text)

    def measured(self) -> dict[str, Any]:
        """The content of measured.json; empty before the first measurement."""
        path = self.folder / MEASURED_FILE
        return json.loads(path.read_bytes()) if path.is_file() else {}

    def record(self, **parts: Any) -> None:
        """Add parts to measured.json; a part of the same name is replaced."""
        merged = self.measured() | parts
        write_text(self.folder / MEASURED_FILE, json.dumps(merged, indent=1))


def _epoch_of(record: dict[str, Any]) -> tuple[Any, Any]:
    return record.get("stage"), record["epoch"]


def encoder_file(precision: str) -> str:
    """File name of the encoder's graph in a precision, in run folders and in bundles."""
    return f"encoder.{precision}.onnx"


def open_run(root: Path, config: Config, data_sha256: str, split_sha256: str) -> Run:
    """The run of this configuration on this data; makes its folder if there is none.

    Raises RunError if the folder was begun with another split. Its weights would have been trained
    on points that now validate them.
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
        write_text(path, json.dumps(about, indent=1))
    return Run(folder, config, data_sha256)


def _check_same_split(folder: Path, about: dict[str, Any], split_sha256: str) -> None:
    if about.get("split_sha256") != split_sha256:
        raise RunError(
            f"{folder} was begun by code that drew other validation points, so its weights "
            "were trained on some of today's: delete that folder to start anew"
        )


def check_same_data(run: Run, data_sha256: str, split_sha256: str) -> None:
    """Raises RunError if the run is on other data or another split than these hashes."""
    if run.data_sha256 != data_sha256:
        raise RunError(
            f"{run.folder} is on data with SHA-256 {run.data_sha256[:12]}, but "
            f"{run.config.data.path} now has {data_sha256[:12]}: restore the data, or train anew"
        )
    _check_same_split(run.folder, json.loads((run.folder / RUN_FILE).read_bytes()), split_sha256)


def find_run(root: Path, config: Config, data_sha256: str) -> Path:
    """The folder of the run of this configuration on this data. Raises RunError without one.

    It reads every run.json, because the folder's name does not tell: newer code has more keys,
    hence another digest for the same run.
    """
    for path in sorted((root / "runs" / config.name).glob(f"*/{RUN_FILE}")):
        run = read_run(path.parent)
        if (run.config, run.data_sha256) == (config, data_sha256):
            return run.folder
    raise RunError(f"{root / 'runs' / config.name} holds no run of this very configuration")


def read_run(folder: Path) -> Run:
    """The run in `folder`. Raises RunError if it has no run.json."""
    path = folder / RUN_FILE
    if not path.is_file():
        raise RunError(f"{folder} is no run folder: it has no {RUN_FILE}")
    about = json.loads(path.read_bytes())
    return Run(folder, Config.model_validate(about["config"]), about["data_sha256"])


def run_digest(config: Config, data_sha256: str) -> str:
    """Twelve hex digits that name this configuration on this data."""
    return hashlib.sha256(f"{config.digest}{data_sha256}".encode()).hexdigest()[:12]


def code_revision() -> str:
    """The commit of the working tree, with `-dirty` if it has changes.

    Outside a clone, such as in an image, the variable SOURCE_REVISION, or "unknown".
    """
    fallback = os.environ.get("SOURCE_REVISION", "unknown")
    root = Path(__file__).resolve().parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return fallback
    return process.stdout.strip() or fallback

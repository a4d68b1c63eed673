"""The stages of the offline job, each a function of a run: train, export, index, release, all.

A stage reads what the one before left in the run folder and leaves its own; what is there already
is not done again, so an interrupted job goes on where it stopped.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy.sparse import csr_array

from models import build_index, calibrate, export_onnx
from models.atomic import write_atomic
from models.config import Config
from models.data.dataset import Dataset, label_texts, point_texts, report
from models.data.formats import open_dataset
from models.encoders.bag import BagEncoder, build_bag
from models.evaluate import evaluate
from models.loop import Validation, train
from models.methods import astra
from models.prepare import Split, TokenizedData, split, tokenize
from models.release import release
from models.rng import Rng
from models.runs import (
    CALIBRATION_FILE,
    ENCODER_FILE,
    INDEX_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
    Run,
    open_run,
)
from service.bundle import QualityInfo, read_manifest, resolve
from service.core.encoder import OnnxEncoder
from service.core.engine import Engine
from service.core.index.faiss_index import EXACT, open_faiss
from service.errors import BundleNotFound

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """A run with its data opened and split."""

    run: Run
    dataset: Dataset
    parts: Split
    bundles: Path

    @classmethod
    def open(cls, config: Config, var: Path) -> "Job":
        """Read the data, find or make the run folder. Raises ModelsError."""
        dataset = open_dataset(Path(config.data.path))
        run = open_run(var, config, dataset.sha256)
        return cls(run, dataset, split(config, dataset), var / "bundles" / config.name)

    @property
    def validation_truth(self) -> csr_array:
        """Labels of the validation points, csr (n, n_labels)."""
        return self.dataset.train.labels[self.parts.validation_rows]


def run_prepare(job: Job) -> str:
    """Counts of the data and of the split, as text."""
    text = report(job.dataset, job.run.config.data.fields).as_text()
    parts = job.parts
    return (
        f"{text}\nsplit: {len(parts.train_rows):,} points to train on, "
        f"{len(parts.validation_rows):,} to validate on"
    )


def run_train(job: Job) -> None:
    """Train to the end; leaves model.safetensors and tokenizer.json."""
    run, config = job.run, job.run.config
    if "training" in run.measured():
        log.info("%s is trained already", run.folder)
        return
    rng = Rng.from_seed(config.seed)
    texts = point_texts(job.dataset.train, config.data.fields)
    corpus = [texts[row] for row in job.parts.train_rows]
    corpus += label_texts(job.dataset.labels, config.data.label_fields)
    encoder, tokenizer_json = build_bag(config.encoder, corpus, config.seed)
    write_atomic(run.folder / TOKENIZER_FILE, lambda path: path.write_text(tokenizer_json, "utf-8"))
    data = _tokenized(job)
    seen = np.concatenate([data.train.ids, data.labels.ids])
    encoder.weigh_words(seen, config.encoder.word_smoothing)
    points = astra.TrainingRows(data.train, job.dataset.train.labels[job.parts.train_rows])
    model, rows = astra.build(encoder, data.labels, config.method, points)
    log.info(
        "training on %d rows, %d labels; %d texts were cut at encoder.max_tokens (%d)",
        len(rows),
        len(job.dataset.labels),
        data.train.n_truncated,
        config.encoder.max_tokens,
    )
    progress = train(model, rows, Validation(data.validation, job.validation_truth), run, rng)
    run.record(
        training={
            "best_epoch": progress.best_epoch + 1,
            "epochs": progress.epoch,
            "validation_p_at_1": progress.best_p_at_1,
            "seconds": round(progress.seconds, 1),
        }
    )


def run_export(job: Job) -> None:
    """Trace the encoder to ONNX and compare it with torch; leaves encoder.onnx."""
    run = job.run
    if run.has(ENCODER_FILE) and "parity" in run.measured():
        return
    parts = astra.servable(load_model(run))
    write_atomic(run.folder / ENCODER_FILE, lambda path: export_onnx.export(parts.encoder, path))
    texts = _tokenized(job).validation
    exported = export_onnx.encode_with(_onnx(run), texts)
    found = export_onnx.parity(parts, exported, texts)
    run.record(parity=found.model_dump())
    log.info(
        "exported: largest difference to torch %.2g, same first label for %.2f %%",
        found.max_abs_diff,
        100 * found.top1_agreement,
    )


def run_index(job: Job) -> None:
    """Build the label index, choose its operating points, fit the calibration."""
    run, config = job.run, job.run.config
    if run.has(CALIBRATION_FILE) and "calibration" in run.measured():
        return
    run.require(ENCODER_FILE, "export")
    path = run.folder / INDEX_FILE
    vectors = astra.servable(load_model(run)).label_vectors
    build_index.build(vectors, config.index, path)
    queries = export_onnx.encode_with(_onnx(run), _tokenized(job).validation)
    truth = job.validation_truth
    points = build_index.measure(path, config.index, vectors, queries, truth)
    run.record(operating_points=[point.model_dump() for point in points])
    rows, scores = _exact_answers(path, queries, len(job.dataset.labels))
    fitted, info = calibrate.calibrate(scores, rows, truth, config.method.logit_bias)
    calibrate.write_calibration(run.folder / CALIBRATION_FILE, fitted)
    run.record(calibration=info.model_dump())


def run_release(job: Job) -> Path:
    """Score the test split through service.core and seal the bundle."""
    return release(job.run, job.dataset, job.bundles)


def run_all(config: Config, var: Path) -> Path:
    """Every stage that has not been done yet; returns the sealed bundle."""
    sealed = find_sealed(config, var)
    if sealed is not None:
        log.info("%s is sealed already", sealed)
        return sealed
    job = Job.open(config, var)
    for line in run_prepare(job).splitlines():
        log.info("%s", line)
    for stage in (run_train, run_export, run_index):
        stage(job)
    return run_release(job)


def run_evaluate(config: Config, bundle: Path, split_name: str) -> QualityInfo:
    """Score a sealed bundle on a split of the config's data."""
    dataset = open_dataset(Path(config.data.path))
    metrics = config.metrics
    return evaluate(
        Engine.open(bundle, device="cpu"),
        dataset,
        split_name,
        config.data.fields,
        metrics.propensity_a,
        metrics.propensity_b,
    )


def find_sealed(config: Config, var: Path) -> Path | None:
    """The newest bundle of this name, if this very config made it."""
    try:
        folder = resolve(var / "bundles" / config.name)
    except BundleNotFound:
        return None
    return folder if read_manifest(folder).config == config.model_dump() else None


def load_model(run: Run) -> astra.Astra:
    """The best epoch's model. Raises RunError."""
    weights = load_file(str(run.require(MODEL_FILE, "train")))
    encoder = BagEncoder(weights["encoder.words.weight"], run.config.encoder.pair_buckets)
    model = astra.Astra(encoder, weights["labels.weight"], run.config.method)
    model.load_state_dict(weights)
    return model


def _tokenized(job: Job) -> TokenizedData:
    tokenizer = job.run.require(TOKENIZER_FILE, "train")
    return tokenize(job.run.config, job.dataset, job.parts, tokenizer)


def _onnx(run: Run) -> OnnxEncoder:
    return OnnxEncoder(
        run.require(ENCODER_FILE, "export"), "cpu", intra_op_threads=torch.get_num_threads()
    )


def _exact_answers(
    path: Path, queries: NDArray[np.float32], n_labels: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    index = open_faiss(path, queries.shape[1], n_labels, {EXACT: {}})
    hits = index.search(queries, calibrate.DEPTH, EXACT)
    return hits.rows, hits.scores

"""Distillation: a better model's probabilities become soft targets of the training points.

The teacher is a sealed bundle or a run folder. A bundle answers through the serving code, a run
through torch. The teacher reads its own `data.fields`, which may be more than the student's. So the
student learns from fields that it does not read (Lopez-Paz et al., 2016).

The student's target of a label is (1 - weight) * relevance + weight * the teacher's probability, if
the label is relevant or among the teacher's first `top`. All other labels are negatives.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, load_npz, save_npz
from scipy.special import expit

from models.config import TeacherConfig
from models.data.dataset import Dataset, point_texts
from models.data.prepare import tokenizer_of
from models.data.tokens import tokenize_texts
from models.encoders.build import embed, transformer_of
from models.encoders.frozen import cached_pooled
from models.errors import RunError
from models.progress import track
from models.runs import RUN_FILE, Run, read_run
from models.trained import load_model
from service.atomic import write_atomic
from service.core.engine import Engine
from service.core.types import Query

_QUERIES_AT_ONCE = 256
"""Our choice: batches that keep the cores busy, and progress that moves every few seconds."""


def soft_targets(
    labels: csr_array, teacher: csr_array, ignored: csr_array, weight: float
) -> csr_array:
    """Targets (n, n_labels): relevance, blended with the teacher's probabilities.

    `labels` (n, n_labels) holds ones, `teacher` and `ignored` have the same shape. The teacher's
    probabilities in `ignored` cells do not count.

    >>> relevant, nothing = csr_array([[1.0, 0.0, 0.0]]), csr_array((1, 3))
    >>> soft_targets(relevant, csr_array([[0.5, 0.2, 0.0]]), nothing, 0.5).toarray()
    array([[0.75, 0.1 , 0.  ]])
    """
    allowed = teacher - teacher.multiply(ignored > 0)
    blended = csr_array(labels * (1.0 - weight) + allowed * weight, dtype=labels.dtype)
    blended.eliminate_zeros()
    return blended


def teacher_probabilities(
    config: TeacherConfig, dataset: Dataset, rows: NDArray[np.int64], path: Path, cache: Path
) -> csr_array:
    """The teacher's probabilities of its first `top` labels, sparse (len(rows), n_labels).

    `rows` are training points. The teacher answers once; the file `path` keeps the answer for
    later calls. `cache` is the folder of pooled outputs of frozen transformers. Raises RunError if
    the teacher's labels or data are others, and BundleError if its bundle cannot be opened.
    """
    if not path.is_file():
        folder = Path(config.path)
        ask = _ask_run if (folder / RUN_FILE).is_file() else _ask_bundle
        labels, scores = ask(folder, dataset, rows, config.top, cache)
        offsets = np.arange(len(rows) + 1) * labels.shape[1]
        shape = (len(rows), len(dataset.labels))
        probabilities = csr_array((scores.ravel(), labels.ravel(), offsets), shape=shape)
        write_atomic(path, lambda temporary: _save(temporary, probabilities))
    return csr_array(load_npz(path))


def _ask_bundle(
    folder: Path, dataset: Dataset, rows: NDArray[np.int64], top: int, cache: Path
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    engine = Engine.open(folder, device="cpu")
    row_of = {uid: row for row, uid in enumerate(dataset.labels.uids)}
    names = [engine.labels[row].label_id for row in range(len(engine.labels))]
    columns = np.array([row_of.get(name, -1) for name in names], np.int64)
    if (columns < 0).any():
        raise RunError(
            f"teacher.path {folder} has labels that this data lacks: name a teacher of these labels"
        )
    texts = point_texts(dataset.train, engine.manifest.config["data"]["fields"])
    top = min(top, engine.index.n_rows)
    labels = np.empty((len(rows), top), np.int64)
    scores = np.empty((len(rows), top), np.float32)
    effort = engine.manifest.defaults.effort
    starts = range(0, len(rows), _QUERIES_AT_ONCE)
    for start in track(starts, len(starts), "asking the teacher"):
        part = slice(start, start + _QUERIES_AT_ONCE)
        answers = engine.predict([Query(texts[row], top, effort) for row in rows[part]]).predictions
        labels[part] = columns[np.stack([answer.rows for answer in answers])]
        scores[part] = np.stack([answer.scores for answer in answers])
    if engine.calibration.score_kind == "logit":
        scores = expit(scores + engine.manifest.config["method"]["logit_bias"])
    return labels, scores


def _ask_run(
    folder: Path, dataset: Dataset, rows: NDArray[np.int64], top: int, cache: Path
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    run: Run = read_run(folder)
    if run.data_sha256 != dataset.sha256:
        raise RunError(f"teacher.path {folder} was trained on other data: name a run on this data")
    config, model = run.config, load_model(run)
    texts = tokenize_texts(
        tokenizer_of(run, "query"), point_texts(dataset.train, config.data.fields)
    )
    transformer = transformer_of(model.encoder)
    if transformer is not None and config.encoder.frozen:
        texts = replace(texts, pooled=cached_pooled(transformer, texts, cache))
    ranking = model.best(embed(model.encoder, texts.take(rows)), top)
    return ranking.labels, ranking.probabilities


def _save(path: Path, matrix: csr_array) -> None:
    with path.open("wb") as file:
        save_npz(file, matrix)

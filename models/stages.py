"""The commands of `python -m models` on a run, each a function: train, export, index, release, ...

A stage reads the files of the stage before it in the run folder, and writes its own there.
Training, export and index do nothing if they are done already. So an interrupted job resumes where
it stopped.
"""

import logging
import time
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from models.config import Config, fold_config
from models.data.dataset import Dataset, report_text
from models.data.filters import filtered_pairs, without_cells
from models.data.prepare import (
    Corpus,
    Split,
    grouping_of,
    open_configured,
    point_groups,
    split,
)
from models.data.splits import Rows
from models.data.tokens import TokenizedTexts
from models.encoders.build import (
    TextEncoder,
    bag_of,
    embed,
    transformer_of,
)
from models.encoders.frozen import cached_pooled
from models.encoders.projection import start_at_principal_axes
from models.encoders.usage import resolve_config
from models.errors import DataError
from models.export.export_onnx import encode_with
from models.export.precisions import RECORD, Exported, export_variants
from models.index import calibrate
from models.index.efforts import measure
from models.index.indexed import memory_of
from models.index.kind import Material
from models.index.memory import (
    FEATURE_TEMPERATURE,
    LabelIndexFacts,
    Memory,
    build_memory,
    remember,
)
from models.index.registry import KINDS, build_label_index
from models.methods import contrastive
from models.quality.evaluate import Part, evaluate
from models.quality.groups import folds_of
from models.quality.ranking import EmbeddedSet, EvaluationSet
from models.rerank.build import build_rerank
from models.rerank.examples import Examples, Scorer, joined
from models.rerank.knowledge import count_knowledge
from models.rng import Rng
from models.runs import (
    CALIBRATION_FILE,
    CHECKPOINT_FILE,
    FOLDS_FOLDER,
    TEACHER_FILE,
    Run,
    check_same_data,
    encoder_file,
    find_run,
    open_run,
    read_run,
)
from models.seal.release import DEFAULT_EFFORT, release
from models.teacher import soft_targets, teacher_probabilities
from models.trained import fresh_model, load_model
from models.training.distributed import World
from models.training.loop import Validation, device_for, train
from models.training.method import Method
from models.training.training_rows import TrainingRows
from models.tune.check import Checked, check_bundle
from models.tune.goal import Goal
from models.tune.report import Report
from models.tune.subject import Subject
from models.tune.tuning import Request, scored_by_vectors, tune
from models.warm_start import first_encoder, keep_label_vectors
from service.bundle.manifest import EXACT, QualityInfo
from service.bundle.verify import read_manifest, resolve
from service.core.encoding.encoder import OnnxEncoder
from service.core.engine import Engine
from service.core.index.memory import MEMORY_EF_SEARCH
from service.core.index.opening import open_whole_index
from service.errors import BundleNotFound

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingJob:
    """A run with its data, which all stages share: read, split and tokenised once.

    `bundles` is the folder of the configuration's bundles. `cache` is the folder of the pooled
    outputs of frozen transformers.
    """

    run: Run
    dataset: Dataset
    parts: Split
    corpus: Corpus
    bundles: Path
    cache: Path

    @classmethod
    def open(cls, config: Config, var: Path) -> Self:
        """Read the data, and find or make the run folder under `var`. Raises ModelsError."""
        config = resolve_config(config)
        dataset = open_configured(config)
        parts = split(config, dataset)
        return cls._of(open_run(var, config, dataset.sha256, parts.sha256), dataset, parts, var)

    @classmethod
    def of_run(cls, folder: Path, var: Path) -> Self:
        """The job of an existing run folder, also of older code's. Raises ModelsError."""
        run = read_run(folder)
        dataset = open_configured(run.config)
        parts = split(run.config, dataset)
        check_same_data(run, dataset.sha256, parts.sha256)
        return cls._of(run, dataset, parts, var)

    @classmethod
    def _of(cls, run: Run, dataset: Dataset, parts: Split, var: Path) -> Self:
        bundles, cache = var / "bundles" / run.config.name, var / "cache" / "pooled"
        return cls(run, dataset, parts, Corpus(run, dataset, parts), bundles, cache)

    @cached_property
    def validation(self) -> Validation:
        """The validation points; they choose epochs, precision, efforts, memory and calibration."""
        return self.evaluation_of(self.parts.validation_rows).of(self.corpus.validation)

    def evaluation_of(self, rows: Rows) -> EvaluationSet[None]:
        """The training points `rows` as an evaluation set, whose queries are yet to be given."""
        train = self.dataset.train.labels
        filtered = filtered_pairs(self.dataset.train_filter, *train.shape)[rows]
        pairs = np.stack(filtered.tocoo().coords, axis=1).astype(np.int64)
        groups = point_groups(self.run.config, self.dataset.train.take(rows))
        truth = without_cells(train[rows], filtered)
        return EvaluationSet(None, truth, pairs, groups)

    @property
    def training_labels(self) -> csr_array:
        """Labels of the points that are trained on, csr (n, n_labels) of ones."""
        return csr_array(self.dataset.train.labels[self.parts.train_rows] > 0, dtype=np.float32)

    @cached_property
    def folds(self) -> list["TrainingJob"]:
        """The jobs whose models score, for the second stage, the points that they do not train on.

        Each is in a folder of the run's own. Empty without a second stage, or where it learns from
        validation points.
        """
        rerank, parts = self.run.config.rerank, self.parts
        if rerank.kind == "none" or rerank.scores != "folds":
            return []
        config = fold_config(self.run.config)
        groups = point_groups(config, self.dataset.train.take(parts.train_rows))
        fold = folds_of(groups, rerank.folds, Rng.from_seed(config.seed).numpy)
        jobs = []
        for number in np.unique(fold):
            held = fold == number
            split = Split(parts.train_rows[~held], parts.validation_rows, parts.train_rows[held])
            run = replace(
                self.run, folder=self.run.folder / FOLDS_FOLDER / str(number + 1), config=config
            )
            corpus = Corpus(run, self.dataset, split)
            jobs.append(replace(self, run=run, parts=split, corpus=corpus))
        return jobs

    @property
    def reads_points_again(self) -> bool:
        """Whether the index or the memory needs the training points once more."""
        config = self.run.config
        kind = KINDS[config.index.kind]
        return kind.wants_points or config.memory.kind != "none" or config.rerank.kind != "none"


def job_of_bundle(bundle: Path, var: Path) -> TrainingJob:
    """The job that sealed a bundle. Raises BundleError, or ModelsError if `var` lacks its run."""
    manifest = read_manifest(resolve(bundle))
    config = Config.model_validate(manifest.config)
    return TrainingJob.of_run(find_run(var, config, manifest.data.sha256), var)


def run_prepare(job: TrainingJob) -> str:
    """A report on the data and the split, as text."""
    text = report_text(job.dataset, job.run.config.data.fields)
    parts = job.parts
    lines = [
        text,
        f"split: {len(parts.train_rows):,} points to train on, "
        f"{len(parts.validation_rows):,} to validate on",
    ]
    if job.dataset.test is not None:
        config = job.run.config
        seen = Part.test(job.dataset, config.data.fields, grouping_of(config)).seen
        lines.append(
            f"test points whose series has a training point: {seen.sum():,} of {len(seen):,} "
            f"({seen.mean():.1%})"
        )
    return "\n".join(lines)


def run_train(job: TrainingJob) -> None:
    """Train to the end; writes model.safetensors and tokenizer.json. Raises ModelsError.

    Then it trains the models of the folds, if there are some, each in its own folder.
    """
    world = World.join()
    try:
        for each in (job, *job.folds):
            if "training" in each.run.measured():
                log.info("%s is trained already", each.run.folder)
            else:
                each.run.folder.mkdir(parents=True, exist_ok=True)
                if each is not job:
                    log.info("fold %s, to score what it does not train on:", each.run.folder.name)
                _train(each, world)
    finally:
        world.leave()


def _train(job: TrainingJob, world: World) -> None:
    run, config = job.run, job.run.config
    rng = Rng.from_seed(config.seed)
    encoder = first_encoder(run, job.dataset, job.parts.train_rows, world)
    encoder = encoder.to(device_for(config.train))
    validation = job.validation.of(_texts(job, "validation", encoder, world))
    model, rows = _untrained(job, encoder, validation, world)
    job.corpus.drop("labels", *([] if job.reads_points_again else ["train"]))
    cpu_start = time.process_time()
    progress = train(model, rows, validation, run, rng)
    if world.leads:
        cpu_seconds = round(time.process_time() - cpu_start, 1)
        run.record(training=progress.outcome() | {"cpu_seconds": cpu_seconds})
        # After the record: a kill between the two must resume the run, not train it anew.
        (run.folder / CHECKPOINT_FILE).unlink(missing_ok=True)


def _untrained(
    job: TrainingJob, encoder: TextEncoder, validation: Validation, world: World
) -> tuple[Method, TrainingRows]:
    """The untrained model around the encoder, pre-trained if configured, and its training rows."""
    run, config = job.run, job.run.config
    points, labels = _points(job, encoder, world), _texts(job, "labels", encoder, world)
    if config.train.start_from:
        model, rows = fresh_model(encoder, labels, config, points, world)
        keep_label_vectors(model, run, job.dataset.labels.uids)
        return model, rows
    if (bag := bag_of(encoder)) is not None:
        token_ids = np.concatenate([points.texts.ids, labels.ids])
        bag.weigh_words(token_ids, config.encoder.word_smoothing)
    transformer = transformer_of(encoder)
    if transformer is not None and config.encoder.projection_start == "axes":
        start_at_principal_axes(transformer, points.texts)
    world.leader_first(lambda: contrastive.pretrain(encoder, points, labels, validation, run))
    model, rows = fresh_model(encoder, labels, config, points, world)
    log.info(
        "training on %d rows, %d labels; %d of all points were cut (at %s tokens)",
        len(rows),
        len(labels),
        points.texts.n_truncated + validation.queries.n_truncated,
        " and ".join(map(str, config.encoder.limits)),
    )
    return model, rows


def _points(job: TrainingJob, encoder: TextEncoder, world: World) -> TrainingRows:
    """The training points as rows, without label texts; their targets include the teacher's."""
    train, points, labels = job.dataset.train, job.parts.train_rows, job.training_labels
    ignored = csr_array(filtered_pairs(job.dataset.train_filter, *train.labels.shape)[points])
    if (teacher := job.run.config.teacher).path:
        path = job.run.folder / TEACHER_FILE
        probabilities = world.leader_first(
            lambda: teacher_probabilities(teacher, job.dataset, points, path, job.cache)
        )
        labels = soft_targets(labels, probabilities, ignored, teacher.weight)
    texts = _texts(job, "train", encoder, world)
    return TrainingRows(
        texts, labels, ignored, [train.uids[row] or f"point {row}" for row in points]
    )


def _texts(
    job: TrainingJob,
    part: Literal["train", "validation", "held", "labels"],
    encoder: TextEncoder,
    world: World,
) -> TokenizedTexts:
    """A part of the corpus; for a frozen encoder with its transformer's pooled outputs."""
    corpus, transformer = job.corpus, transformer_of(encoder)
    texts: TokenizedTexts = getattr(corpus, part)
    if transformer is None or not job.run.config.encoder.frozen:
        return texts
    everything = corpus.labels if part == "labels" else corpus.points
    pooled = world.leader_first(lambda: cached_pooled(transformer, everything, job.cache))
    parts = job.parts
    rows = {"train": parts.train_rows, "validation": parts.validation_rows, "held": parts.held_rows}
    return replace(texts, pooled=pooled[rows[part]] if part in rows else pooled)


def run_export(job: TrainingJob) -> None:
    """Export the encoder to ONNX in every precision, measure each, and choose the one to serve.

    Raises ModelsError.
    """
    run = job.run
    if RECORD in run.measured():
        return
    export_variants(load_model(run), job.validation, run)


def run_index(job: TrainingJob) -> None:
    """Build the label index, choose its efforts, fit the calibration. Raises ModelsError."""
    run, config = job.run, job.run.config
    if run.has(CALIBRATION_FILE) and {"calibration", "index"} <= run.measured().keys():
        return
    encoder = _onnx(run)
    material = _material(job, encoder, KINDS[config.index.kind].wants_points)
    info = build_label_index(material, config.index, run.folder)
    vectors = material.vectors
    validation = job.validation.of(encode_with(encoder, job.corpus.validation))
    points = measure(run.folder, info, config.index, vectors, validation)
    bias = None if info.metric == "probability" else config.method.logit_bias
    label_index = LabelIndexFacts(vectors, info, points)
    memory = None
    if config.memory.kind != "none":
        outcome = build_memory(_memory(job), label_index, validation, run)
        run.record(memory=outcome.record)
        memory = outcome.info
        if memory is not None:
            points, bias = outcome.points, None  # blended scores are probabilities already
    index = open_whole_index(run.folder, info, memory, vectors.shape[1], {EXACT: {}})
    answers = index.search(validation.queries, calibrate.DEPTH, EXACT)
    if config.rerank.kind != "none" and _second_stage(job, vectors, validation, answers.rows):
        # Trees read the memory as a feature, so the index's own scores are blended with nothing.
        points, bias = list(label_index.points), config.method.logit_bias
        index = open_whole_index(run.folder, info, None, vectors.shape[1], {EXACT: {}})
        answers = index.search(validation.queries, calibrate.DEPTH, EXACT)
    run.record(index=info.model_dump(), operating_points=[p.model_dump() for p in points])
    curve, errors = calibrate.calibrate(answers, validation, bias)
    calibrate.write_calibration(run.folder / CALIBRATION_FILE, curve)
    run.record(calibration=errors.model_dump())
    job.corpus.drop("train")


def _second_stage(
    job: TrainingJob, vectors: NDArray[np.float32], validation: EmbeddedSet, before: Rows
) -> bool:
    """Build the second stage; returns whether it is used. `before` are rankings (n, k) without."""
    run, scorer, texts = job.run, scorer_of(job, vectors), job.corpus.validation
    outcome = build_rerank(scorer, validation, texts, partial(held_out_examples, job), before, run)
    run.record(rerank=outcome.record)
    if outcome.memory is not None:
        run.record(memory=run.measured()["memory"] | {"info": outcome.memory.model_dump()})
    return outcome.used


def held_out_examples(job: TrainingJob, names: list[str]) -> Examples | None:
    """What trees learn from, with the features `names`: the points that each fold held out.

    None without folds, where they learn from validation points.
    """
    parts = []
    for fold in job.folds:
        model, texts = load_model(fold.run), fold.corpus.held
        queries = embed(model.encoder, _texts(fold, "held", model.encoder, World()))
        held = job.evaluation_of(fold.parts.held_rows).of(queries)
        scorer = scorer_of(fold, model.servable().label_vectors)
        examples = scorer.describe(names, job.run.config.rerank.depth, held, texts)
        parts.append(examples.take(np.diff(held.truth.indptr) > 0))
        fold.corpus.drop("train", "held", "labels")
    return joined(parts) if parts else None


def scorer_of(job: TrainingJob, vectors: NDArray[np.float32]) -> Scorer:
    """The job's model, with the memory and the counts of the points that it was trained on."""
    config, labels = job.run.config, job.corpus.labels
    memory = None if config.memory.kind == "none" else _memory(job)
    tokens = np.split(labels.ids, labels.offsets[1:-1])
    # A token that no label has is beyond the table, and weighs nothing in a query.
    knowledge = count_knowledge(job.training_labels, tokens, int(labels.ids.max(initial=0)) + 1)
    return Scorer(vectors, knowledge, memory, FEATURE_TEMPERATURE)


def _material(job: TrainingJob, encoder: OnnxEncoder, wants_points: bool) -> Material:
    """The trained parts that an index is built from; training points only if it needs them."""
    config = job.run.config
    parts = load_model(job.run).servable()
    vectors = parts.label_vectors
    labels = csr_array((0, len(vectors)), dtype=np.float32)
    points = np.empty((0, vectors.shape[1]), np.float32)
    if wants_points:
        points = encode_with(encoder, job.corpus.train)
        labels = job.training_labels
    return Material(vectors, config.method.logit_bias, points, labels, parts.graph)


def _memory(job: TrainingJob) -> Memory:
    """The training points as a memory: embeddings and labels."""
    encoder = load_model(job.run).encoder
    embeddings = embed(encoder, _texts(job, "train", encoder, World()))
    return remember(embeddings, job.training_labels, job.run.config.memory.values)


def run_release(job: TrainingJob) -> Path:
    """Score the test split through service.core and seal the bundle; returns its folder.

    Raises ModelsError.
    """
    return release(job.run, job.dataset, job.parts, job.bundles)


def run_tune(job: TrainingJob, request: Request) -> Report:
    """Search for an index that reaches a goal, and seal the run with it. Raises ModelsError.

    If no index reaches it, the report says so and nothing is sealed.
    """
    run_export(job)
    subject = _subject(job, request.wants_points(job.run))
    report, indexed = tune(subject, job.run, request)
    if indexed is not None:
        release(job.run, job.dataset, job.parts, job.bundles, indexed)
    return report


def run_check(job: TrainingJob, bundle: Path, goal: Goal | None) -> Checked:
    """Measure a bundle's operating points again; without a `goal`, against the bundle's own."""
    return check_bundle(_subject(job, wants_points=False), job.dataset.sha256, bundle, goal)


def _subject(job: TrainingJob, wants_points: bool) -> Subject:
    """The run as the subject of a tuning; its memory keeps the search width of `balanced`."""
    run, encoder = job.run, _onnx(job.run)
    memory = memory_of(run)
    if memory is not None and not memory.weight:
        memory = None  # a second stage reads it, and the index's search does not
    points = {p["name"]: p["params"] for p in run.measured().get("operating_points", [])}
    return Subject(
        run_folder=run.folder,
        config=run.config.index,
        material=_material(job, encoder, wants_points),
        validation=job.validation.of(encode_with(encoder, job.corpus.validation)),
        vectors_score=scored_by_vectors(run.config),
        memory=memory,
        memory_ef_search=points[DEFAULT_EFFORT].get(MEMORY_EF_SEARCH) if memory else None,
    )


def run_all(config: Config, var: Path) -> Path:
    """Run the stages that are not done yet; returns the sealed bundle. Raises ModelsError."""
    sealed = find_sealed(config, var)
    if sealed is not None:
        log.info("%s is sealed already", sealed)
        return sealed
    job = TrainingJob.open(config, var)
    for line in run_prepare(job).splitlines():
        log.info("%s", line)
    for stage in (run_train, run_export, run_index):
        stage(job)
    return run_release(job)


def run_evaluate(config: Config, bundle: Path, split_name: str) -> QualityInfo:
    """Score a sealed bundle on the `test`, `validation` or `train` split of the data.

    Raises ModelsError, BundleError.
    """
    dataset = open_configured(config)
    if split_name == "test" and dataset.test is None:
        expected = "a file tst of test points to score on (or give --split train)"
        raise DataError(Path(config.data.path), None, expected, "none")
    a, b = config.metrics.propensity_a, config.metrics.propensity_b
    engine = Engine.open(bundle, device="cpu")
    fields, grouping = config.data.fields, grouping_of(config)
    if split_name == "validation":
        rows = split(config, dataset).validation_rows
        part = Part.validation(dataset, rows, fields, grouping)
    else:
        part = {"test": Part.test, "train": Part.train}[split_name](dataset, fields, grouping)
    return evaluate(engine, dataset, part, fields, a, b)


def find_sealed(config: Config, var: Path) -> Path | None:
    """The newest bundle of this name, if it has the same configuration; else None.

    Raises SourceError.
    """
    try:
        folder = resolve(var / "bundles" / config.name)
    except BundleNotFound:
        return None
    return folder if read_manifest(folder).config == resolve_config(config).model_dump() else None


def _onnx(run: Run) -> OnnxEncoder:
    """The encoder in the precision that is served. Raises RunError before `export`."""
    path = run.require(encoder_file(Exported.of(run).served), "export")
    return OnnxEncoder(path, "cpu", intra_op_threads=torch.get_num_threads())

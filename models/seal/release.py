"""The release gate: assemble a candidate, score it through service.core, record, seal, open again.

The test split is touched here and nowhere else, once, when everything has been chosen.
"""

import datetime
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from models.config import Config
from models.data.dataset import Dataset, point_texts
from models.data.filters import item_pairs
from models.data.prepare import split
from models.errors import ReleaseError
from models.export.export_onnx import OPSET
from models.export.precisions import REFERENCE, Exported
from models.index.indexed import Indexed
from models.quality.evaluate import evaluate
from models.runs import (
    CALIBRATION_FILE,
    TOKENIZER_FILE,
    Run,
    code_revision,
    encoder_file,
)
from models.seal.bundle_writer import publish, write_manifest
from models.seal.model_card import model_card
from service.atomic import staging_folder
from service.bundle.manifest import (
    SCHEMA_VERSION,
    CodeInfo,
    DataInfo,
    Defaults,
    EncoderInfo,
    FilterInfo,
    Golden,
    HistogramInfo,
    LabelsInfo,
    Manifest,
    ParityInfo,
    ReferenceInfo,
    TextInfo,
    TokenizerInfo,
)
from service.core.drift import LENGTH_BOUNDS, REFERENCE_SIZE, SCORE_BOUNDS, histogram_counts
from service.core.encoding.encoder import ATTENTION_MASK, INPUT_IDS, OnnxEncoder
from service.core.encoding.text import NORMALISER, NORMALISER_VERSION
from service.core.engine import Engine
from service.core.labels.item_filter import ITEMS_FILE, ROWS_FILE, STARTS_FILE, write_item_filter
from service.core.labels.label_directory import HASH_ROWS_FILE, HASHES_FILE, write_directory
from service.core.labels.labels import LABELS_FILE, OFFSETS_FILE, Label, write_labels
from service.core.types import Query
from service.version import __version__

log = logging.getLogger(__name__)

MODEL_CARD = "MODEL_CARD.md"
DEFAULT_EFFORT = "balanced"
TEXTS_AT_ONCE = 256
LABEL_FILES = [LABELS_FILE, OFFSETS_FILE, HASHES_FILE, HASH_ROWS_FILE]


def release(run: Run, dataset: Dataset, bundles: Path, indexed: Indexed | None = None) -> Path:
    """Seal the run as `bundles/<bundle_id>` and point at it. Raises ModelsError, BundleError.

    `indexed` is another index than the `index` stage's.
    """
    config = run.config
    exported = Exported.of(run)
    indexed = indexed or Indexed.of(run)
    candidate = _candidate(run, dataset, exported, indexed)
    check_parity(config, exported.parity(REFERENCE))
    with staging_folder(bundles) as folder:
        shutil.copyfile(run.require(TOKENIZER_FILE, "train"), folder / TOKENIZER_FILE)
        for name in [*indexed.info.files, CALIBRATION_FILE]:
            shutil.copyfile(indexed.folder / name, folder / name)
        for name in candidate.encoder.variants.values():
            shutil.copyfile(run.require(name, "export"), folder / name)
        for name in candidate.memory.files if candidate.memory is not None else ():
            shutil.copyfile(run.require(name, "index"), folder / name)
        write_labels(folder, _labels(dataset))
        write_directory(folder, dataset.labels.uids)
        info = _write_filter(folder, dataset, config.data.own_item)
        draft = write_manifest(folder, candidate.model_copy(update={"filter": info}))
        engine = Engine.open(folder, device="cpu")
        metrics = config.metrics
        split_name = "test" if dataset.test is not None else "train"
        quality = evaluate(
            engine,
            dataset,
            split_name,
            config.data.fields,
            metrics.propensity_a,
            metrics.propensity_b,
        )
        n_golden = config.release.golden_queries
        golden = record_golden(engine, _validation_texts(config, dataset, n_golden))
        precisions = {
            name: run.require(encoder_file(name), "export")
            for name in {*draft.encoder.measured, REFERENCE}
        }
        encoder = with_drifts(draft.encoder, engine, golden, precisions)
        reference = record_reference(engine, _validation_texts(config, dataset, REFERENCE_SIZE))
        update = {
            "encoder": encoder,
            "quality": quality,
            "golden": golden,
            "reference": reference,
        }
        final = draft.model_copy(update=update)
        (folder / MODEL_CARD).write_text(model_card(final), encoding="utf-8")
        sealed = write_manifest(folder, final)
        Engine.open(folder, device="cpu")  # verifies every hash and replays the golden queries
        target = publish(folder, sealed.bundle_id)
    log.info("sealed %s", target)
    return target


def check_parity(config: Config, parity: ParityInfo) -> None:
    """Refuse an fp32 export that computes something else than torch does. Raises ReleaseError.

    What other precisions may lose is judged by P@1, when they are chosen
    (models.export.precisions).
    """
    limits = config.release
    if parity.max_abs_diff > limits.max_parity_diff:
        raise ReleaseError(
            f"the fp32 ONNX encoder differs from torch by {parity.max_abs_diff:.2g}, "
            f"release.max_parity_diff allows {limits.max_parity_diff:.2g}"
        )
    if parity.top1_agreement < limits.min_top1_agreement:
        raise ReleaseError(
            f"the fp32 ONNX encoder agrees with torch on the first label for "
            f"{parity.top1_agreement:.4f} of the queries, release.min_top1_agreement asks for "
            f"{limits.min_top1_agreement}"
        )


def _candidate(run: Run, dataset: Dataset, exported: Exported, indexed: Indexed) -> Manifest:
    config = run.config
    return Manifest(
        schema_version=SCHEMA_VERSION,
        bundle_id="",
        name=config.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        code=CodeInfo(version=__version__, revision=code_revision()),
        data=DataInfo(name=dataset.name, sha256=dataset.sha256, counts=_counts(dataset)),
        config=config.model_dump(),
        text=TextInfo(normaliser=NORMALISER, version=NORMALISER_VERSION),
        tokenizer=TokenizerInfo(file=TOKENIZER_FILE, max_tokens=config.encoder.max_tokens),
        encoder=EncoderInfo(
            file=encoder_file(exported.served),
            variants={name: encoder_file(name) for name in exported.carried},
            dim=exported.dim,
            inputs=[INPUT_IDS, ATTENTION_MASK],
            opset=OPSET,
            measured={name: found for name, found in exported.measured.items()},
        ),
        index=indexed.info,
        labels=LabelsInfo(files=LABEL_FILES, n_labels=len(dataset.labels)),
        calibration=indexed.calibration.model_copy(update={"file": CALIBRATION_FILE}),
        defaults=Defaults(k=config.release.default_k, effort=DEFAULT_EFFORT),
        operating_points=indexed.points,
        goal=indexed.goal,
        quality=None,
        memory=indexed.memory,
        parity=exported.parity(exported.served),
        golden=[],
        files={},
    )


def _counts(dataset: Dataset) -> dict[str, int]:
    counts = {"labels": len(dataset.labels), "training points": len(dataset.train)}
    if dataset.test is not None:
        counts["test points"] = len(dataset.test)
    return counts


def _labels(dataset: Dataset) -> list[Label]:
    catalogue = dataset.labels
    return [
        Label(uid, title, {"content": content} if content else {})
        for uid, title, content in zip(
            catalogue.uids, catalogue.titles, catalogue.contents, strict=True
        )
    ]


def _write_filter(folder: Path, dataset: Dataset, own_item: bool) -> FilterInfo | None:
    """Write what is left out for which item; None, and no file, where that is nothing."""
    item_ids, rows = item_pairs(dataset, own_item)
    if not item_ids:
        return None
    n_items, n_pairs = write_item_filter(folder, item_ids, rows)
    return FilterInfo(
        files=[ITEMS_FILE, STARTS_FILE, ROWS_FILE],
        own_item=own_item,
        n_items=n_items,
        n_pairs=n_pairs,
    )


def with_drifts(
    info: EncoderInfo, engine: Engine, golden: list[Golden], precisions: Mapping[str, Path]
) -> EncoderInfo:
    """How far served scores of the golden queries move where a variant runs in place of another.

    The served one recorded them, so it is held to fp32 instead: arithmetic in few bits differs
    between processors, by about as much as it differs from fp32. A variant whose file is not among
    `precisions` keeps what it had.
    """
    measured = dict(info.measured)
    for name, found in info.measured.items():
        path = precisions.get(REFERENCE if name == info.served else name)
        if path is None:
            continue
        other = replace(engine, encoder=OnnxEncoder(path, "cpu"))
        drift = max(other.golden_drifts(golden), default=0.0)
        measured[name] = found.model_copy(update={"golden_drift": round(drift, 6)})
    return info.model_copy(update={"measured": measured})


def _validation_texts(config: Config, dataset: Dataset, n: int) -> list[str]:
    """The first validation texts."""
    texts = point_texts(dataset.train, config.data.fields)
    return [texts[row] for row in split(config, dataset).validation_rows[:n]]


def record_reference(engine: Engine, texts: Sequence[str]) -> ReferenceInfo | None:
    """What answers to validation texts look like; None where there is no text."""
    if not texts:
        return None
    defaults = engine.manifest.defaults
    scores, lengths = [], []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        some = [Query(text, 1, defaults.effort) for text in texts[start : start + TEXTS_AT_ONCE]]
        for answer in engine.predict(some).predictions:
            scores.append(float(answer.scores[0]))
            lengths.append(answer.n_tokens)
    return ReferenceInfo(
        split="validation",
        n_queries=len(texts),
        top_score=_histogram(scores, SCORE_BOUNDS),
        query_tokens=_histogram(lengths, LENGTH_BOUNDS),
    )


def _histogram(values: Sequence[float], bounds: Sequence[float]) -> HistogramInfo:
    counts = histogram_counts(np.array(values, np.float64), bounds)
    return HistogramInfo(bounds=[float(bound) for bound in bounds], counts=counts.tolist())


def record_golden(engine: Engine, texts: Sequence[str]) -> list[Golden]:
    """Answers to texts, as they are now."""
    defaults = engine.manifest.defaults
    queries = [Query(text, defaults.k, defaults.effort) for text in texts]
    return [
        Golden(
            query=query.text,
            label_ids=[engine.labels[int(row)].label_id for row in answer.rows],
            scores=[round(float(score), 6) for score in answer.scores],
        )
        for query, answer in zip(queries, engine.predict(queries).predictions, strict=True)
    ]

"""The release gate: assemble a candidate, score it through service.core, record, seal, open again.

The test split is touched here and nowhere else, once, when everything has been chosen.
"""

import datetime
import logging
import shutil
from pathlib import Path
from typing import Any

from models.bundle_writer import publish, staging_folder, write_manifest
from models.config import Config
from models.data.dataset import Dataset, point_texts
from models.errors import ReleaseError
from models.evaluate import evaluate
from models.export_onnx import OPSET, PRECISION
from models.model_card import model_card
from models.prepare import split
from models.runs import (
    CALIBRATION_FILE,
    ENCODER_FILE,
    INDEX_FILE,
    TOKENIZER_FILE,
    Run,
    code_revision,
)
from service.bundle import (
    SCHEMA_VERSION,
    CalibrationInfo,
    CodeInfo,
    DataInfo,
    Defaults,
    EncoderInfo,
    Golden,
    IndexInfo,
    LabelsInfo,
    Manifest,
    OperatingPoint,
    ParityInfo,
    TextInfo,
    TokenizerInfo,
)
from service.core.encoder import ATTENTION_MASK, INPUT_IDS
from service.core.engine import Engine
from service.core.labels import LABELS_FILE, OFFSETS_FILE, Label, write_labels
from service.core.text import NORMALISER, NORMALISER_VERSION
from service.core.types import Query
from service.version import __version__

log = logging.getLogger(__name__)

MODEL_CARD = "MODEL_CARD.md"
DEFAULT_EFFORT = "balanced"
_STAGE_OF = {
    TOKENIZER_FILE: "train",
    ENCODER_FILE: "export",
    INDEX_FILE: "index",
    CALIBRATION_FILE: "index",
}


def release(run: Run, dataset: Dataset, bundles: Path) -> Path:
    """Seal the run as `bundles/<bundle_id>` and point at it. Raises ReleaseError, BundleError."""
    config = run.config
    candidate = _candidate(run, dataset)
    check_parity(config, candidate.parity)
    with staging_folder(bundles) as folder:
        for name, stage in _STAGE_OF.items():
            shutil.copyfile(run.require(name, stage), folder / name)
        write_labels(folder, _labels(dataset))
        draft = write_manifest(folder, candidate)
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
        golden = _record_golden(engine, config, dataset)
        final = draft.model_copy(update={"quality": quality, "golden": golden})
        (folder / MODEL_CARD).write_text(model_card(final), encoding="utf-8")
        sealed = write_manifest(folder, final)
        Engine.open(folder, device="cpu")  # verifies every hash and replays the golden queries
        target = publish(folder, sealed.bundle_id)
    log.info("sealed %s", target)
    return target


def check_parity(config: Config, parity: ParityInfo) -> None:
    """Refuse an export that computes something else than torch does. Raises ReleaseError."""
    limits = config.release
    if parity.max_abs_diff > limits.max_parity_diff:
        raise ReleaseError(
            f"the ONNX encoder differs from torch by {parity.max_abs_diff:.2g}, "
            f"release.max_parity_diff allows {limits.max_parity_diff:.2g}"
        )
    if parity.top1_agreement < limits.min_top1_agreement:
        raise ReleaseError(
            f"the ONNX encoder agrees with torch on the first label for "
            f"{parity.top1_agreement:.4f} of the queries, release.min_top1_agreement asks for "
            f"{limits.min_top1_agreement}"
        )


def _candidate(run: Run, dataset: Dataset) -> Manifest:
    config, measured = run.config, run.measured()
    for part, stage in (("parity", "export"), ("operating_points", "index")):
        if part not in measured:
            raise ReleaseError(f"{run.folder} has no {part}: run `python -m models {stage}` first")
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
            file=ENCODER_FILE,
            variants={PRECISION: ENCODER_FILE},
            dim=config.encoder.dim,
            inputs=[INPUT_IDS, ATTENTION_MASK],
            opset=OPSET,
        ),
        index=_index_info(config, dataset),
        labels=LabelsInfo(files=[LABELS_FILE, OFFSETS_FILE], n_labels=len(dataset.labels)),
        calibration=CalibrationInfo.model_validate(
            measured["calibration"] | {"file": CALIBRATION_FILE}
        ),
        defaults=Defaults(k=config.release.default_k, effort=DEFAULT_EFFORT),
        operating_points=[
            OperatingPoint.model_validate(point) for point in measured["operating_points"]
        ],
        quality=None,
        parity=ParityInfo.model_validate(measured["parity"]),
        golden=[],
        files={},
    )


def _index_info(config: Config, dataset: Dataset) -> IndexInfo:
    params: dict[str, Any] = {}
    if config.index.kind == "hnsw":
        params = {"m": config.index.m, "ef_construction": config.index.ef_construction}
    return IndexInfo(
        kind=config.index.kind,
        files=[INDEX_FILE],
        metric="inner_product",
        params=params,
        n_rows=len(dataset.labels),
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


def _record_golden(engine: Engine, config: Config, dataset: Dataset) -> list[Golden]:
    """Answers to the first validation texts, as they are now."""
    texts = point_texts(dataset.train, config.data.fields)
    rows = split(config, dataset).validation_rows[: config.release.golden_queries]
    defaults = engine.manifest.defaults
    queries = [Query(texts[row], defaults.k, defaults.effort) for row in rows]
    return [
        Golden(
            query=query.text,
            label_ids=[engine.labels[int(row)].label_id for row in answer.rows],
            scores=[round(float(score), 6) for score in answer.scores],
        )
        for query, answer in zip(queries, engine.predict(queries).predictions, strict=True)
    ]

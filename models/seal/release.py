"""The release gate: seals a run as a bundle, if the bundle passes every check.

It assembles the bundle's files and opens them with `service.core`. With that engine it measures
quality and records golden queries and the drift reference. Then it seals the bundle and opens it
once more. Of the stages only this one measures on the test split, once, after every
choice. (`compare` measures sealed bundles on it.)
"""

import datetime
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from models.config import Config
from models.data.dataset import Dataset, point_texts
from models.data.filters import item_pairs
from models.data.prepare import Split, grouping_of, prefix_of
from models.errors import ReleaseError
from models.export.export_onnx import OPSET
from models.export.precisions import REFERENCE, Exported
from models.index.indexed import Indexed, second_stage_of
from models.quality.evaluate import Part, evaluate
from models.runs import (
    CALIBRATION_FILE,
    TOKENIZER_FILE,
    Run,
    code_revision,
    encoder_file,
)
from models.seal.bundle_writer import publish, write_manifest
from models.seal.model_card import model_card
from models.seal.not_worse import check_not_worse
from service.atomic import staging_folder
from service.bundle.manifest import (
    SCHEMA_VERSION,
    CodeInfo,
    DataInfo,
    Defaults,
    EncoderInfo,
    FieldInfo,
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


def release(
    run: Run, dataset: Dataset, parts: Split, bundles: Path, indexed: Indexed | None = None
) -> Path:
    """Seal the run as `bundles/<bundle_id>`, and let CURRENT name it. Returns that folder.

    `indexed` replaces the index that the stage `index` built. Raises ModelsError, BundleError.
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
        for name in _files_beside_index(candidate):
            shutil.copyfile(run.require(name, "index"), folder / name)
        write_labels(folder, _labels(dataset))
        write_directory(folder, dataset.labels.uids)
        info = _write_filter(folder, dataset, config.data.own_item)
        validation = dataset.train.take(parts.validation_rows)
        texts = point_texts(validation, config.data.fields)
        golden_texts = texts[: config.release.golden_queries]
        precisions = {
            name: run.require(encoder_file(name), "export")
            for name in {*candidate.encoder.measured, REFERENCE}
        }

        scored = _scored_part(config, dataset, parts)

        def measure(engine: Engine) -> dict[str, Any]:
            compared = check_not_worse(engine, dataset, scored, config)
            if compared is not None:
                run.record(not_worse_than=compared)
            a, b = config.metrics.propensity_a, config.metrics.propensity_b
            return {
                "quality": evaluate(engine, dataset, scored, config.data.fields, a, b),
                "reference": record_reference(engine, texts[:REFERENCE_SIZE]),
            }

        draft = candidate.model_copy(update={"filter": info})
        target = seal(folder, draft, golden_texts, precisions, measure)
    log.info("sealed %s", target)
    return target


def _scored_part(config: Config, dataset: Dataset, parts: Split) -> Part:
    """The test points, or where there are none those that were not trained on."""
    fields, grouping = config.data.fields, grouping_of(config)
    if dataset.test is not None:
        return Part.test(dataset, fields, grouping)
    return Part.validation(dataset, parts.validation_rows, fields, grouping)


def seal(
    folder: Path,
    draft: Manifest,
    texts: Sequence[str],
    precisions: Mapping[str, Path],
    measure: Callable[[Engine], dict[str, Any]] = lambda engine: {},
) -> Path:
    """Seal a staging folder: open it, record its answers to `texts`, open it again, point at it.

    `precisions` are the encoder's files whose drift is measured; `measure` may give further entries
    of the manifest from the opened candidate. Raises BundleError.
    """
    draft = write_manifest(folder, draft)
    engine = Engine.open(folder, device="cpu")
    measured = measure(engine)
    golden = record_golden(engine, texts)
    encoder = with_drifts(draft.encoder, engine, golden, precisions)
    final = draft.model_copy(update={"encoder": encoder, "golden": golden, **measured})
    (folder / MODEL_CARD).write_text(model_card(final), encoding="utf-8")
    sealed = write_manifest(folder, final)
    Engine.open(folder, device="cpu")  # verifies every hash and replays the golden queries
    return publish(folder, sealed.bundle_id)


def check_parity(config: Config, parity: ParityInfo) -> None:
    """Raise ReleaseError where the fp32 export computes other embeddings than torch.

    Other precisions may differ more. `models.export.precisions` chooses them by their loss of P@1.
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
    config, stage = run.config, second_stage_of(run)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        bundle_id="",
        name=config.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        code=CodeInfo(version=__version__, revision=code_revision()),
        data=DataInfo(name=dataset.name, sha256=dataset.sha256, counts=_counts(dataset)),
        config=config.model_dump(),
        text=TextInfo(normaliser=NORMALISER, version=NORMALISER_VERSION),
        tokenizer=_tokenizer(config),
        encoder=EncoderInfo(
            file=encoder_file(exported.served),
            variants={name: encoder_file(name) for name in exported.carried},
            dim=exported.dim,
            inputs=[INPUT_IDS, ATTENTION_MASK],
            opset=OPSET,
            measured={name: info for name, info in exported.measured.items()},
        ),
        index=indexed.info,
        labels=LabelsInfo(files=LABEL_FILES, n_labels=len(dataset.labels)),
        calibration=indexed.calibration.model_copy(update={"file": CALIBRATION_FILE}),
        defaults=Defaults(k=config.release.default_k, effort=DEFAULT_EFFORT),
        operating_points=stage.add_to(indexed.points) if stage else indexed.points,
        goal=indexed.goal,
        quality=None,
        memory=indexed.memory,
        rerank=stage.info if stage else None,
        parity=exported.parity(exported.served),
        golden=[],
        files={},
    )


def _tokenizer(config: Config) -> TokenizerInfo:
    encoder, fields = config.encoder, []
    if encoder.field_tokens:
        pairs = zip(config.data.views, encoder.field_tokens, strict=True)
        fields = [FieldInfo(name=name, max_tokens=limit) for name, limit in pairs]
    return TokenizerInfo(
        file=TOKENIZER_FILE,
        max_tokens=sum(encoder.limits),
        query_prefix=prefix_of(encoder, "query"),
        label_prefix=prefix_of(encoder, "label"),
        fields=fields,
    )


def _files_beside_index(manifest: Manifest) -> list[str]:
    """The files of the memory and of the second stage, which lie in the run's folder."""
    names = list(manifest.memory.files) if manifest.memory is not None else []
    if (rerank := manifest.rerank) is not None:
        assert rerank.calibration.file is not None
        names += [rerank.graph, *rerank.files, rerank.calibration.file]
    return names


def _counts(dataset: Dataset) -> dict[str, int]:
    counts = {"labels": len(dataset.labels), "training points": len(dataset.train)}
    if dataset.test is not None:
        counts["test points"] = len(dataset.test)
    return counts


def _labels(dataset: Dataset) -> list[Label]:
    catalogue = dataset.labels
    metadata = catalogue.metadata or [{}] * len(catalogue)
    return [
        Label(uid, title, {"content": content} | about if content else about)
        for uid, title, content, about in zip(
            catalogue.uids, catalogue.titles, catalogue.contents, metadata, strict=True
        )
    ]


def _write_filter(folder: Path, dataset: Dataset, own_item: bool) -> FilterInfo | None:
    """Write the item filter. Returns None, and writes no file, where it leaves out no label."""
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
    """Measure for each variant how far it moves the scores of the golden queries.

    Every variant but the served one runs the queries that the served one recorded. In place of the
    served variant fp32 runs them. Its drift then stands for the difference between processors:
    arithmetic in few bits differs between them by about as much as it differs from fp32. A variant
    whose file is not in `precisions` keeps its earlier value.
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


def record_reference(engine: Engine, texts: Sequence[str]) -> ReferenceInfo | None:
    """Histograms of the best scores and the lengths of these texts; None where there is no text."""
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
    """Record this engine's answers to texts, with default k and effort."""
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

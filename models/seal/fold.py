"""Folds the changes to a catalogue into the next bundle, without training.

The base is the bundle that the changes were made to. The next bundle has the same encoder and a new
index. Added labels keep the vectors with which the service serves them
(`service.core.catalogue.placement`), and removed labels are left out. The item filter, the memory
and what the re-ranker knows about labels get new label rows. Operating points and golden queries
are measured and recorded again. Quality, calibration and trees are copied from the base, and the
manifest says so. An index that was trained with its labels cannot take new ones, so such kinds are
refused.
"""

import datetime
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from models.config import Config
from models.data.dataset import point_texts
from models.data.filters import filtered_pairs
from models.data.prepare import open_configured, split
from models.errors import FoldError
from models.index import memory as memories
from models.index.efforts import measure, recall_targets
from models.index.kind import Material
from models.index.registry import build_label_index
from models.quality.ranking import EmbeddedSet, EvaluationSet
from models.rerank.knowledge import move_knowledge, write_knowledge
from models.runs import code_revision
from models.seal.release import LABEL_FILES, MODEL_CARD, seal
from service.atomic import staging_folder, write_array
from service.bundle.claims import RERANK_DEPTH
from service.bundle.manifest import EXACT, FilterInfo, FoldedInfo, Manifest, OperatingPoint
from service.bundle.verify import resolve
from service.core.catalogue.live import measure_placement
from service.core.catalogue.postgres_store import PostgresStore
from service.core.catalogue.snapshot import Snapshot
from service.core.catalogue.sqlite_store import SqliteStore, store_path
from service.core.catalogue.store import ChangeStore
from service.core.encoding.embedding import embed_texts
from service.core.encoding.field_tokenizer import AnyTokenizer
from service.core.engine import Engine
from service.core.index.augmented import AugmentedIndex
from service.core.index.faiss_index import FaissIndex
from service.core.index.memory import open_memory
from service.core.index.memory_labels import MemoryLabels
from service.core.index.opening import Efforts
from service.core.labels.id_hash import hash_ids
from service.core.labels.item_filter import write_hashed_item_filter
from service.core.labels.label_directory import write_directory
from service.core.labels.labels import Label, write_labels
from service.version import __version__

log = logging.getLogger(__name__)

_TOKENS_AT_ONCE = 16384


def fold(
    bundle: Path, state: str | Path, out: Path | None = None, data: Path | None = None
) -> Path:
    """Seal the next bundle from `bundle` and the changes in `state`; returns its folder.

    `state` is the service's folder of changes, or the URL of its database.

    It is written to `out`, by default the folder that holds `bundle`, and CURRENT then names it.
    `data` is the folder of the training data, by default the one that the run read. Raises
    FoldError, DataError, ReleaseError, BundleError, CatalogueError.
    """
    folder = resolve(bundle)
    engine = Engine.open(folder, device="cpu")
    manifest = engine.manifest
    _check_kind(manifest)
    store = _open_store(str(state), manifest.name)
    try:
        plan = _plan(engine, store, folder)
        validation = _validation(manifest, engine, plan, data)
        with staging_folder(out or folder.parent) as staging:
            target = _seal(folder, staging, engine, plan, validation)
        store.mark_folded(target.name, plan.folded.seq)
    finally:
        store.close()
    log.info("sealed %s with changes up to %d folded in", target, plan.folded.seq)
    return target


def _open_store(state: str, name: str) -> ChangeStore:
    if "://" in state:
        return PostgresStore(state, name)
    path = store_path(Path(state), name)
    if not path.is_file():
        raise FoldError(
            f"{path} is not there: --state is the service's ASTROLABE_STATE_DIR or "
            "ASTROLABE_CATALOGUE_URL"
        )
    return SqliteStore(path, name)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The labels of the next bundle with their vectors (n, dim), and where each base row moves."""

    labels: list[Label]
    vectors: NDArray[np.float32]
    moved: NDArray[np.int64]
    """(n_base,) The new row of each row of the base; -1 where its label is removed."""
    first_added: int
    folded: FoldedInfo


def _check_kind(manifest: Manifest) -> None:
    if manifest.index.metric != "inner_product":
        raise FoldError(
            f"an index of kind {manifest.index.kind} is learned together with its labels, so none "
            "can be folded into it: train again with the changed labels, or go on serving them "
            "from the delta index"
        )


def _plan(engine: Engine, store: ChangeStore, folder: Path) -> _Plan:
    manifest = engine.manifest
    catalogue = engine.with_store(store).catalogue
    snapshot = catalogue.snapshot
    if snapshot is None:
        raise FoldError(
            f"{store.place} has no change that {folder.name[:12]} does not hold already"
        )
    if snapshot.n_live == 0:
        raise FoldError(f"{store.place} removes every label: a bundle needs at least one")
    rows = snapshot.live_rows()
    kept = rows[rows < snapshot.n_base]
    delta = snapshot.delta
    base_vectors = _label_index(engine).vectors(kept)
    moved = np.full(snapshot.n_base, -1, np.int64)
    moved[kept] = np.arange(len(kept))
    label_tokenizer = engine.tokenizer.with_prefix(manifest.tokenizer.label_prefix)
    embed = partial(_embed, engine, label_tokenizer)
    scale = measure_placement(manifest, engine.index, engine.labels, embed).scale
    return _Plan(
        labels=[snapshot.label(int(row)) for row in rows],
        vectors=np.concatenate([base_vectors, delta.vectors[delta.alive]]),
        moved=moved,
        first_added=len(kept),
        folded=_folded(manifest, snapshot, catalogue.seq, scale),
    )


def _folded(manifest: Manifest, snapshot: Snapshot, seq: int, scale: float) -> FoldedInfo:
    of_base = {snapshot.labels[int(row)].label_id for row in snapshot.tombstones}
    alive = snapshot.delta.rows[snapshot.delta.alive]
    changed = sum(snapshot.label(int(row)).label_id in of_base for row in alive)
    before = manifest.folded.n_added_in_all if manifest.folded is not None else 0
    return FoldedInfo(
        name=manifest.name,
        seq=seq,
        base=manifest.bundle_id,
        scale=scale,
        n_added=len(alive) - changed,
        n_removed=len(of_base) - changed,
        n_updated=changed + len(snapshot.overrides),
        n_added_in_all=before + len(alive),
    )


def _label_index(engine: Engine) -> FaissIndex:
    index = engine.index.labels if isinstance(engine.index, AugmentedIndex) else engine.index
    assert isinstance(index, FaissIndex)  # true of every kind whose metric is inner_product
    return index


def _embed(engine: Engine, tokenizer: AnyTokenizer, texts: Sequence[str]) -> NDArray[np.float32]:
    return embed_texts(tokenizer, engine.encoder, texts, _TOKENS_AT_ONCE)


def _validation(manifest: Manifest, engine: Engine, plan: _Plan, data: Path | None) -> EmbeddedSet:
    """The validation queries of the run that trained the base, with the new label rows."""
    config = Config.model_validate(manifest.config)
    if data is not None:
        moved = config.data.model_copy(update={"path": str(data)})
        config = config.model_copy(update={"data": moved})
    dataset = open_configured(config)
    if dataset.sha256 != manifest.data.sha256:
        raise FoldError(
            f"{config.data.path} has SHA-256 {dataset.sha256[:12]}, the bundle was trained on "
            f"{manifest.data.sha256[:12]}: name that data with --data"
        )
    picked = split(config, dataset).validation_rows
    filtered = filtered_pairs(dataset.train_filter, *dataset.train.labels.shape)[picked]
    columns = _columns(plan, dataset.labels.uids)
    pairs = np.stack(_moved(csr_array(filtered), columns, len(plan.labels)).nonzero(), axis=1)
    return EvaluationSet(
        _embed(
            engine,
            engine.tokenizer,
            point_texts(dataset.train.take(picked), config.data.fields),
        ),
        _moved(dataset.train.labels[picked], columns, len(plan.labels)),
        pairs.astype(np.int64),
    )


def _columns(plan: _Plan, uids: list[str]) -> NDArray[np.int64]:
    """The new row of each label of the data; -1 where the label is removed."""
    rows = {label.label_id: row for row, label in enumerate(plan.labels)}
    return np.array([rows.get(uid, -1) for uid in uids], np.int64)


def _moved(matrix: csr_array, columns: NDArray[np.int64], width: int) -> csr_array:
    cells = matrix.tocoo()
    points, labels = cells.coords
    new = columns[labels]
    kept = new >= 0
    shape = (matrix.shape[0], width)
    return csr_array((cells.data[kept], (points[kept], new[kept])), shape=shape)


def _seal(base: Path, staging: Path, engine: Engine, plan: _Plan, validation: EmbeddedSet) -> Path:
    manifest = engine.manifest
    config = Config.model_validate(manifest.config)
    _copy(base, staging, manifest)
    write_labels(staging, plan.labels)
    write_directory(staging, [label.label_id for label in plan.labels])
    filter_info = _write_filter(staging, engine, plan)
    index_config = config.index.model_copy(  # `tune` may have chosen another than the config's
        update={"kind": manifest.index.kind, **manifest.index.params}
    )
    info = build_label_index(_material(plan, config), index_config, staging)
    points = measure(staging, info, index_config, plan.vectors, validation)
    if manifest.memory is not None:
        label_index = memories.LabelIndexFacts(plan.vectors, info, points)
        memory = _move_memory(base, staging, manifest, plan)
        recalls = recall_targets(config.memory)
        points = memories.measure(
            staging, label_index, memory, manifest.memory, recalls, validation
        )
    if manifest.rerank is not None and engine.reranker is not None:
        knowledge = engine.reranker.knowledge
        write_knowledge(move_knowledge(knowledge, plan.moved, len(plan.labels)), staging)
        points = [_re_ranked(point, manifest) for point in points]
    update: dict[str, Any] = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "code": manifest.code.model_copy(
            update={"version": __version__, "revision": code_revision()}
        ),
        "index": info,
        "labels": manifest.labels.model_copy(
            update={"files": LABEL_FILES, "n_labels": len(plan.labels)}
        ),
        "filter": filter_info,
        "folded": plan.folded,
        "operating_points": points,
        "goal": None,  # only the base was measured against it
        "golden": [],
    }
    texts = [item.query for item in manifest.golden]
    carried = {name: staging / file for name, file in manifest.encoder.variants.items()}
    return seal(staging, manifest.model_copy(update=update), texts, carried)


def _re_ranked(point: OperatingPoint, manifest: Manifest) -> OperatingPoint:
    """The point with the re-ranking depth that the base has for its effort."""
    depths = {
        each.name: {RERANK_DEPTH: each.params[RERANK_DEPTH]}
        for each in manifest.operating_points
        if RERANK_DEPTH in each.params
    }
    return point.model_copy(update={"params": {**point.params, **depths.get(point.name, {})}})


def _copy(base: Path, staging: Path, manifest: Manifest) -> None:
    """Copy the files that do not change: encoder, tokenizer, calibration, the memory's queries."""
    made_anew = {*manifest.index.files, *manifest.labels.files, *LABEL_FILES, MODEL_CARD}
    made_anew |= set(manifest.filter.files) if manifest.filter is not None else set()
    for name in set(manifest.files) - made_anew:
        shutil.copyfile(base / name, staging / name)


def _material(plan: _Plan, config: Config) -> Material:
    n_labels, dim = plan.vectors.shape
    return Material(
        vectors=plan.vectors,
        logit_bias=config.method.logit_bias,
        points=np.empty((0, dim), np.float32),
        labels=csr_array((0, n_labels), dtype=np.float32),
    )


def _write_filter(staging: Path, engine: Engine, plan: _Plan) -> FilterInfo | None:
    """Write the item filter with the new rows; None where the base has none.

    Where labels are items that answers leave out for themselves, so are the added labels.
    """
    info, found = engine.manifest.filter, engine.item_filter
    if info is None or found is None:
        return None
    items, rows = found.pairs()
    new = plan.moved[rows]
    items, rows = items[new >= 0], new[new >= 0]
    if info.own_item:
        added = plan.labels[plan.first_added :]
        own = hash_ids([label.label_id for label in added])
        items = np.concatenate([items, own])
        rows = np.concatenate([rows, plan.first_added + np.arange(len(added))])
    n_items, n_pairs = write_hashed_item_filter(staging, items, rows)
    return info.model_copy(update={"n_items": n_items, "n_pairs": n_pairs})


def _move_memory(base: Path, staging: Path, manifest: Manifest, plan: _Plan) -> memories.Memory:
    """Move the memory's label rows along; its queries stay."""
    memory = manifest.memory
    assert memory is not None
    dim = manifest.encoder.dim
    scanned: Efforts = {EXACT: {}}
    labels = open_memory(base, memory, dim, manifest.index.n_rows, scanned).labels
    _write_memory_labels(staging, memory.files[1:], labels, plan.moved)
    new = open_memory(staging, memory, dim, len(plan.labels), scanned)
    assert isinstance(new.index, FaissIndex)  # as every memory of a bundle
    return memories.Memory(new.index.vectors(np.arange(memory.n_rows)), new.labels)


def _write_memory_labels(
    staging: Path, files: list[str], labels: MemoryLabels, moved: NDArray[np.int64]
) -> None:
    """Write the memory's labels with their new rows.

    A remembered query stays even where all its labels are removed, and can still be a neighbour.
    """
    new = moved[labels.labels]
    kept = new >= 0
    before = np.concatenate([[0], np.cumsum(kept)])
    arrays: list[NDArray[Any]] = [
        before[labels.offsets].astype(np.int64),
        new[kept].astype(np.int32),
        labels.values[kept],
    ]
    for name, array in zip(files, arrays, strict=True):
        write_array(staging / name, array)

"""Folds the changes to a catalogue into the next bundle: the same encoder, the index built again.

Added labels get the vectors that they are served with (`service.core.catalogue.placement`), removed
ones are left out, rows of the item filter and of the memory are moved along. Operating points and
golden queries are made anew; quality and calibration stay the base's, and the manifest says so.
Nothing is trained, so kinds of index that are learned with the labels cannot take new ones.
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

from models.config import Config, IndexConfig
from models.data.dataset import point_texts
from models.data.filters import filtered_pairs
from models.data.prepare import open_configured, split
from models.errors import FoldError
from models.index import memory as memories
from models.index.efforts import measure
from models.index.kind import Material
from models.index.registry import build_label_index
from models.runs import code_revision
from models.seal.bundle_writer import publish, write_manifest
from models.seal.model_card import model_card
from models.seal.release import LABEL_FILES, MODEL_CARD, record_golden, with_drifts
from service.atomic import staging_folder, write_array
from service.bundle.manifest import (
    EXACT,
    FilterInfo,
    FoldedInfo,
    IndexInfo,
    Manifest,
    OperatingPoint,
)
from service.bundle.verify import resolve
from service.core.catalogue.live import measure_placement
from service.core.catalogue.snapshot import Snapshot
from service.core.catalogue.store import ChangeStore, store_path
from service.core.encoding.embedding import embed_texts
from service.core.engine import Engine
from service.core.index.augmented import AugmentedIndex, open_memory
from service.core.index.faiss_index import FaissIndex
from service.core.index.memory_labels import MemoryLabels
from service.core.index.opening import Efforts
from service.core.labels.id_hash import hash_ids
from service.core.labels.item_filter import write_hashed_item_filter
from service.core.labels.label_directory import write_directory
from service.core.labels.labels import Label, write_labels
from service.version import __version__

log = logging.getLogger(__name__)

_TOKENS_AT_ONCE = 16384


def fold(bundle: Path, state_dir: Path, out: Path | None = None, data: Path | None = None) -> Path:
    """Seal `bundle` with the changes in `state_dir` folded in, in `out`, and point at it.

    `out` is by default where the bundle lies, `data` the folder of the data it was trained on.
    Raises FoldError, DataError, ReleaseError, BundleError, CatalogueError.
    """
    folder = resolve(bundle)
    engine = Engine.open(folder, device="cpu")
    manifest = engine.manifest
    _check_kind(manifest)
    path = store_path(state_dir, manifest.name)
    if not path.is_file():
        raise FoldError(f"{path} is not there: --state is the service's ASTROLABE_STATE_DIR")
    store = ChangeStore(path, manifest.name)
    try:
        plan = _plan(engine, store, folder)
        asked = _asked(manifest, engine, plan, data)
        with staging_folder(out or folder.parent) as staging:
            target = _seal(folder, staging, engine, plan, asked)
        store.mark_folded(target.name, plan.folded.seq)
    finally:
        store.close()
    log.info("sealed %s with changes up to %d folded in", target, plan.folded.seq)
    return target


@dataclass(frozen=True, slots=True)
class _Plan:
    """The labels of the next bundle, and from which rows of now they come."""

    labels: list[Label]
    vectors: NDArray[np.float32]
    moved: NDArray[np.int64]
    """(rows of the base), the new row of each; -1 where it is removed."""
    first_added: int
    folded: FoldedInfo


@dataclass(frozen=True, slots=True)
class _Asked:
    """Validation queries, their embeddings and the new rows that answer them."""

    queries: NDArray[np.float32]
    truth: csr_array
    filtered: NDArray[np.int64]


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
        raise FoldError(f"{store.path} has no change that {folder.name[:12]} does not hold already")
    if snapshot.n_live == 0:
        raise FoldError(f"{store.path} removes every label: a bundle needs at least one")
    rows = snapshot.live_rows()
    kept = rows[rows < snapshot.n_base]
    delta = snapshot.delta
    base_vectors = _label_index(engine).vectors(kept)
    moved = np.full(snapshot.n_base, -1, np.int64)
    moved[kept] = np.arange(len(kept))
    embed = partial(_embed, engine)
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
    assert isinstance(index, FaissIndex)  # every kind that compares inner products is one
    return index


def _embed(engine: Engine, texts: Sequence[str]) -> NDArray[np.float32]:
    return embed_texts(engine.tokenizer, engine.encoder, texts, _TOKENS_AT_ONCE)


def _asked(manifest: Manifest, engine: Engine, plan: _Plan, data: Path | None) -> _Asked:
    """The validation points of the run that trained the base."""
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
    texts = point_texts(dataset.train, config.data.fields)
    filtered = filtered_pairs(dataset.train_filter, *dataset.train.labels.shape)[picked]
    columns = _columns(plan, dataset.labels.uids)
    pairs = np.stack(_moved(csr_array(filtered), columns, len(plan.labels)).nonzero(), axis=1)
    return _Asked(
        queries=_embed(engine, [texts[row] for row in picked]),
        truth=_moved(dataset.train.labels[picked], columns, len(plan.labels)),
        filtered=pairs.astype(np.int64),
    )


def _columns(plan: _Plan, uids: list[str]) -> NDArray[np.int64]:
    """The new row of each label of the data, -1 where it is there no more."""
    rows = {label.label_id: row for row, label in enumerate(plan.labels)}
    return np.array([rows.get(uid, -1) for uid in uids], np.int64)


def _moved(matrix: csr_array, columns: NDArray[np.int64], width: int) -> csr_array:
    cells = matrix.tocoo()
    points, labels = cells.coords
    new = columns[labels]
    kept = new >= 0
    shape = (matrix.shape[0], width)
    return csr_array((cells.data[kept], (points[kept], new[kept])), shape=shape)


def _seal(base: Path, staging: Path, engine: Engine, plan: _Plan, asked: _Asked) -> Path:
    manifest = engine.manifest
    _copy(base, staging, manifest)
    write_labels(staging, plan.labels)
    write_directory(staging, [label.label_id for label in plan.labels])
    filter_info = _write_filter(staging, engine, plan)
    info = _write_index(staging, manifest, plan)
    config = Config.model_validate(manifest.config)
    points = measure(
        staging,
        info,
        _index_config(manifest, config),
        plan.vectors,
        asked.queries,
        asked.truth,
        asked.filtered,
    )
    if manifest.memory is not None:
        points = _with_memory(base, staging, manifest, config, plan, info, points, asked)
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
        "goal": None,  # it was held by the base
        "golden": [],
    }
    draft = write_manifest(staging, manifest.model_copy(update=update))
    opened = Engine.open(staging, device="cpu")
    golden = record_golden(opened, [item.query for item in manifest.golden])
    carried = {name: staging / file for name, file in manifest.encoder.variants.items()}
    encoder = with_drifts(draft.encoder, opened, golden, carried)
    final = draft.model_copy(update={"encoder": encoder, "golden": golden})
    (staging / MODEL_CARD).write_text(model_card(final), encoding="utf-8")
    sealed = write_manifest(staging, final)
    Engine.open(staging, device="cpu")  # verifies every hash and replays the golden queries
    return publish(staging, sealed.bundle_id)


def _copy(base: Path, staging: Path, manifest: Manifest) -> None:
    """What stays as it is: encoder, tokenizer, calibration, the memory's queries."""
    made_anew = {*manifest.index.files, *manifest.labels.files, *LABEL_FILES, MODEL_CARD}
    made_anew |= set(manifest.filter.files) if manifest.filter is not None else set()
    for name in set(manifest.files) - made_anew:
        shutil.copyfile(base / name, staging / name)


def _index_config(manifest: Manifest, config: Config) -> IndexConfig:
    """How the base's index is built, which `tune` may have chosen otherwise than the config."""
    return config.index.model_copy(update={"kind": manifest.index.kind, **manifest.index.params})


def _write_index(staging: Path, manifest: Manifest, plan: _Plan) -> IndexInfo:
    config = Config.model_validate(manifest.config)
    n_labels, dim = plan.vectors.shape
    material = Material(
        vectors=plan.vectors,
        logit_bias=config.method.logit_bias,
        points=np.empty((0, dim), np.float32),
        labels=csr_array((0, n_labels), dtype=np.float32),
    )
    return build_label_index(material, _index_config(manifest, config), staging)


def _write_filter(staging: Path, engine: Engine, plan: _Plan) -> FilterInfo | None:
    """The item filter with moved rows; added labels leave themselves out where all others do."""
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


def _with_memory(
    base: Path,
    staging: Path,
    manifest: Manifest,
    config: Config,
    plan: _Plan,
    info: IndexInfo,
    points: list[OperatingPoint],
    asked: _Asked,
) -> list[OperatingPoint]:
    """Move the memory's label rows along; the operating points with it beside the labels."""
    memory = manifest.memory
    assert memory is not None
    dim = manifest.encoder.dim
    scanned: Efforts = {EXACT: {}}
    _, labels = open_memory(base, memory, dim, manifest.index.n_rows, scanned)
    _write_memory_labels(staging, memory.files[1:], labels, plan.moved)
    index, new = open_memory(staging, memory, dim, len(plan.labels), scanned)
    remembered = memories.Memory(index.vectors(np.arange(memory.n_rows)), new)
    recalls = {
        "fast": config.memory.recall_fast,
        "balanced": config.memory.recall_balanced,
        "thorough": config.memory.recall_thorough,
    }
    return memories.measure(
        staging,
        points,
        info,
        plan.vectors,
        remembered,
        memory,
        recalls,
        asked.queries,
        asked.truth,
        asked.filtered,
    )


def _write_memory_labels(
    staging: Path, files: list[str], labels: MemoryLabels, moved: NDArray[np.int64]
) -> None:
    """A query whose labels are all removed stays: it goes on taking a neighbour's place."""
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

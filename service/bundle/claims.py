"""Checks that a manifest does not contradict itself, nor the file sizes that it lists.

`service.bundle.verify` calls it after the schema check; it reads no other file. It refuses a count
that the listed bytes cannot hold. Because `verify` compares the list with the real sizes, nothing
reserves memory for such a count.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from service.errors import BundleMismatch, ManifestInvalid

if TYPE_CHECKING:
    from service.bundle.manifest import Manifest

_BITS_BY_ROW_AND_DIMENSION: Final = {
    "flat": 32,
    "hnsw": 16,
    "ivf-flat": 16,
    "ivf-pq": 16,
    "label-tree": 32,
    "learned-graph": 32,
    "pq-fastscan": 16,
    "sq8": 24,
}
"""Least bits of an index file for each label and dimension, by the formats that
`service.core.index` reads. The files may hold more. Other kinds have no bound."""
_LEAST_LABEL_BYTES: Final = 2
"""A lower bound for a line of labels.jsonl; real ones are longer."""
_OFFSET_BYTES: Final = 8
"""Offsets, rows and hashes are 64-bit numbers."""
RERANK_DEPTH: Final = "rerank_depth"
"""Effort parameter: how many labels the re-ranker re-orders; without it none."""
MOST_SEARCHED: Final = 1 << 20
"""Largest search parameter, or the number of rows if that is larger. A choice, far above any that
a calibration tries."""


def check_claims(where: Path, manifest: "Manifest") -> None:
    """Raises ManifestInvalid or BundleMismatch if parts of the manifest contradict each other.

    `where` is the manifest's path, for messages.
    """
    for name in _referenced_files(manifest):
        if name not in manifest.files:
            raise ManifestInvalid(f"{where}: {name[:80]!r} is used but not listed under files")
    _check_encoder(where, manifest)
    _check_efforts(where, manifest)
    _check_counts(where, manifest)
    _check_rerank(where, manifest)
    _check_golden(where, manifest)


def _check_encoder(where: Path, manifest: "Manifest") -> None:
    encoder = manifest.encoder
    if encoder.file not in encoder.variants.values():
        raise BundleMismatch(
            f"{where}: encoder.file is {encoder.file!r}, encoder.variants has "
            f"{list(encoder.variants.values())}"
        )


def _check_efforts(where: Path, manifest: "Manifest") -> None:
    names = [point.name for point in manifest.operating_points]
    if len(set(names)) != len(names):
        raise BundleMismatch(f"{where}: operating_points has a name twice: {names}")
    if manifest.defaults.effort not in names:
        raise BundleMismatch(
            f"{where}: defaults.effort is {manifest.defaults.effort!r}, "
            f"operating_points has {names}"
        )
    largest = max(MOST_SEARCHED, manifest.index.n_rows)
    for point in manifest.operating_points:
        for name, value in point.params.items():
            if value > largest:
                raise ManifestInvalid(
                    f"{where}: operating point {point.name}: {name[:80]} is {value}, at most "
                    f"{largest} makes sense here"
                )


def _check_counts(where: Path, manifest: "Manifest") -> None:
    n_labels, index = manifest.labels.n_labels, manifest.index
    if n_labels != index.n_rows:
        raise BundleMismatch(
            f"{where}: labels.n_labels is {n_labels}, index.n_rows is {index.n_rows}: they must be "
            "equal"
        )
    bits = _BITS_BY_ROW_AND_DIMENSION.get(index.kind, 0)
    least = {
        "index": (index.files, index.n_rows * manifest.encoder.dim * bits // 8),
        "labels": (manifest.labels.files, n_labels * (_LEAST_LABEL_BYTES + _OFFSET_BYTES)),
    }
    if manifest.memory is not None:
        least["memory"] = (manifest.memory.files, manifest.memory.n_rows * _OFFSET_BYTES)
    if manifest.filter is not None:
        entries = manifest.filter.n_items + manifest.filter.n_pairs
        least["filter"] = (manifest.filter.files, entries * _OFFSET_BYTES)
    for part, (files, needed) in least.items():
        size = sum(manifest.files[name].bytes for name in set(files))
        if size < needed:
            raise BundleMismatch(
                f"{where}: {part} claims what takes at least {needed} bytes, its files have {size}"
            )


def _check_rerank(where: Path, manifest: "Manifest") -> None:
    rerank = manifest.rerank
    for point in manifest.operating_points:
        depth = point.params.get(RERANK_DEPTH, 0)
        most = 0 if rerank is None else rerank.depth
        if depth > most:
            raise BundleMismatch(
                f"{where}: operating point {point.name}: {RERANK_DEPTH} is {depth}, the bundle's "
                f"trees re-order at most {most} labels"
            )
    if rerank is None:
        return
    if manifest.memory is not None and manifest.memory.weight:
        raise BundleMismatch(
            f"{where}: memory.weight is {manifest.memory.weight}: beside a re-ranker, which reads "
            "the memory as a feature, it must be 0"
        )
    if (rerank.calibration.file is None) != (manifest.calibration.file is None):
        raise BundleMismatch(
            f"{where}: calibration and rerank.calibration must both have a file, or neither"
        )


def _check_golden(where: Path, manifest: "Manifest") -> None:
    for item in manifest.golden:
        if not 0 < len(item.label_ids) == len(item.scores) <= manifest.labels.n_labels:
            raise BundleMismatch(
                f"{where}: golden query {item.query[:80]!r} has {len(item.label_ids)} labels and "
                f"{len(item.scores)} scores, the bundle has {manifest.labels.n_labels} labels"
            )


def _referenced_files(manifest: "Manifest") -> list[str]:
    files = [manifest.tokenizer.file, manifest.encoder.file, *manifest.encoder.variants.values()]
    files += manifest.index.files + manifest.labels.files
    files += manifest.filter.files if manifest.filter else []
    files += manifest.memory.files if manifest.memory else []
    if (rerank := manifest.rerank) is not None:
        files += [rerank.graph, *rerank.files]
        files += [rerank.calibration.file] if rerank.calibration.file else []
    return files + ([manifest.calibration.file] if manifest.calibration.file else [])

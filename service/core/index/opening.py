"""Opens the index that a manifest names: one opener for each kind, and the memory beside it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from service.bundle.manifest import IndexInfo, MemoryInfo
from service.core.index.augmented import open_augmented
from service.core.index.faiss_index import open_faiss
from service.core.index.label_tree import open_label_tree
from service.core.index.learned_graph import open_learned_graph
from service.core.index.protocol import LabelIndex
from service.errors import BundleMismatch

Efforts = Mapping[str, Mapping[str, int]]
Opener = Callable[[Path, IndexInfo, int, Efforts], LabelIndex]


def _open_by_faiss(folder: Path, info: IndexInfo, dim: int, efforts: Efforts) -> LabelIndex:
    path, kind = folder / info.files[0], ("index.kind", info.kind)
    return open_faiss(path, dim, info.n_rows, efforts, kind)


OPENERS: Final[Mapping[str, Opener]] = {
    "label-tree": open_label_tree,
    "flat": _open_by_faiss,
    "hnsw": _open_by_faiss,
    "ivf-flat": _open_by_faiss,
    "ivf-pq": _open_by_faiss,
    "learned-graph": open_learned_graph,
    "pq-fastscan": _open_by_faiss,
    "sq8": _open_by_faiss,
}


def open_label_index(folder: Path, info: IndexInfo, dim: int, efforts: Efforts) -> LabelIndex:
    """Open the index in `folder` that `info` describes; raises BundleMismatch.

    `efforts` maps an effort's name to its search parameters; without any its search is exhaustive.
    """
    opener = OPENERS.get(info.kind)
    if opener is None:
        raise BundleMismatch(
            f"{folder}: index.kind is {info.kind!r}, this code has {', '.join(OPENERS)}"
        )
    return opener(folder, info, dim, efforts)


def open_whole_index(
    folder: Path, info: IndexInfo, memory: MemoryInfo | None, dim: int, efforts: Efforts
) -> LabelIndex:
    """The label index, with the memory where it is blended in; raises BundleMismatch."""
    labels = open_label_index(folder, info, dim, efforts)
    if memory is None or not memory.weight:
        return labels
    return open_augmented(folder, memory, labels, efforts)

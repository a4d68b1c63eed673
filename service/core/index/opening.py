"""Opens the label index that a manifest names: one opener for each kind."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from service.bundle import IndexInfo
from service.core.index.faiss_index import open_faiss
from service.core.index.label_tree import open_label_tree
from service.core.index.protocol import LabelIndex
from service.errors import BundleMismatch

Efforts = Mapping[str, Mapping[str, int]]
Opener = Callable[[Path, IndexInfo, int, Efforts], LabelIndex]


def _open_graph_or_scan(folder: Path, info: IndexInfo, dim: int, efforts: Efforts) -> LabelIndex:
    return open_faiss(folder / info.files[0], dim, info.n_rows, efforts)


OPENERS: Final[Mapping[str, Opener]] = {
    "flat": _open_graph_or_scan,
    "hnsw": _open_graph_or_scan,
    "label-tree": open_label_tree,
}


def open_label_index(folder: Path, info: IndexInfo, dim: int, efforts: Efforts) -> LabelIndex:
    """The index in `folder` that `info` describes; raises BundleMismatch.

    `efforts` maps the name of an effort to its search parameters; one without any is exhaustive.
    """
    opener = OPENERS.get(info.kind)
    if opener is None:
        raise BundleMismatch(
            f"{folder}: index.kind is {info.kind!r}, this code has {', '.join(OPENERS)}"
        )
    return opener(folder, info, dim, efforts)

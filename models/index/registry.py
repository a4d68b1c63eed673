"""All kinds of label index, by name; a new kind adds one line here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from models.config import IndexConfig
from models.index.flat import Flat
from models.index.hnsw import Hnsw
from models.index.inverted import IvfFlat, IvfPq
from models.index.kind import IndexKind, Material
from models.index.label_tree import LabelTree
from models.index.learned_graph import LearnedGraph
from models.index.quantised import PqFastScan, Sq8
from service.bundle.manifest import IndexInfo

_ALL: Final[tuple[IndexKind, ...]] = (
    Flat(),
    Hnsw(),
    LabelTree(),
    Sq8(),
    PqFastScan(),
    IvfFlat(),
    IvfPq(),
    LearnedGraph(),
)
KINDS: Final[Mapping[str, IndexKind]] = {kind.name: kind for kind in _ALL}


def build_label_index(material: Material, config: IndexConfig, folder: Path) -> IndexInfo:
    """Build the index of `config.kind` in `folder`; returns its entry for the manifest."""
    kind = KINDS[config.kind]
    return IndexInfo(
        kind=kind.name,
        files=kind.build(material, config, folder),
        metric=kind.metric,
        params=kind.params(config),
        n_rows=len(material.vectors),
    )

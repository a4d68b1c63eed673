"""Opens the parts of a bundle and checks them against its manifest."""

from pathlib import Path

from service.bundle.manifest import Manifest
from service.core.encoding.text import NORMALISER, NORMALISER_VERSION
from service.core.index.augmented import AugmentedIndex
from service.core.index.memory import Memory, open_memory
from service.core.index.opening import open_whole_index
from service.core.index.protocol import LabelIndex
from service.core.labels.item_filter import ItemFilter
from service.errors import BundleMismatch


def raw_score_kind(manifest: Manifest) -> str:
    """The kind of a bundle's scores before calibration: `logit` or `probability`."""
    blended = manifest.memory is not None and manifest.memory.weight > 0
    probable = blended or manifest.index.metric == "probability"
    return "probability" if probable else "logit"


def check_text(folder: Path, manifest: Manifest) -> None:
    """Raises BundleMismatch if the bundle was trained with another cleaning of texts."""
    text = manifest.text
    if (text.normaliser, text.version) != (NORMALISER, NORMALISER_VERSION):
        raise BundleMismatch(
            f"{folder}: trained with text cleaning {text.normaliser} {text.version}, this code "
            f"has {NORMALISER} {NORMALISER_VERSION}: serve it with the Astrolabe that sealed it"
        )


def open_index(folder: Path, manifest: Manifest) -> LabelIndex:
    """Open the index that the manifest names, with its memory where that is blended in.

    Raises BundleMismatch.
    """
    efforts = {point.name: point.params for point in manifest.operating_points}
    dim = manifest.encoder.dim
    return open_whole_index(folder, manifest.index, manifest.memory, dim, efforts)


def memory_of(folder: Path, manifest: Manifest, index: LabelIndex) -> Memory | None:
    """The bundle's memory: the one in its open `index`, or opened here; raises BundleMismatch."""
    if isinstance(index, AugmentedIndex):
        return index.memory
    if (info := manifest.memory) is None:
        return None
    efforts = {point.name: point.params for point in manifest.operating_points}
    return open_memory(folder, info, manifest.encoder.dim, index.n_rows, efforts)


def open_item_filter(folder: Path, manifest: Manifest) -> ItemFilter | None:
    """Open the item filter, or return None if the manifest names none; raises BundleMismatch."""
    spec = manifest.filter
    if spec is None:
        return None
    item_filter = ItemFilter(folder, manifest.labels.n_labels)
    if (len(item_filter), item_filter.n_pairs) != (spec.n_items, spec.n_pairs):
        raise BundleMismatch(
            f"{folder}: the filter holds {len(item_filter)} items with {item_filter.n_pairs} rows, "
            f"the manifest says {spec.n_items} with {spec.n_pairs}"
        )
    return item_filter

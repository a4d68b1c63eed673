"""Opens the parts of a bundle that the manifest describes, and holds them against it."""

from pathlib import Path

from service.bundle.manifest import Manifest
from service.core.encoding.text import NORMALISER, NORMALISER_VERSION
from service.core.index.opening import open_whole_index
from service.core.index.protocol import LabelIndex
from service.core.labels.item_filter import ItemFilter
from service.errors import BundleMismatch


def raw_score_kind(manifest: Manifest) -> str:
    """What a bundle's scores are before calibration."""
    probable = manifest.memory or manifest.index.metric == "probability"
    return "probability" if probable else "logit"


def check_text(folder: Path, manifest: Manifest) -> None:
    """Raises BundleMismatch where the bundle expects another cleaning of texts."""
    text = manifest.text
    if (text.normaliser, text.version) != (NORMALISER, NORMALISER_VERSION):
        raise BundleMismatch(
            f"{folder}: trained with text cleaning {text.normaliser} {text.version}, this code "
            f"has {NORMALISER} {NORMALISER_VERSION}: serve it with the Astrolabe that sealed it"
        )


def open_index(folder: Path, manifest: Manifest) -> LabelIndex:
    """The index of the kind that the manifest names; raises BundleMismatch."""
    efforts = {point.name: point.params for point in manifest.operating_points}
    dim = manifest.encoder.dim
    return open_whole_index(folder, manifest.index, manifest.memory, dim, efforts)


def open_item_filter(folder: Path, manifest: Manifest) -> ItemFilter | None:
    """The item filter, where the manifest names one; raises BundleMismatch."""
    spec = manifest.filter
    if spec is None:
        return None
    found = ItemFilter(folder, manifest.labels.n_labels)
    if (len(found), found.n_pairs) != (spec.n_items, spec.n_pairs):
        raise BundleMismatch(
            f"{folder}: the filter holds {len(found)} items with {found.n_pairs} rows, the "
            f"manifest says {spec.n_items} with {spec.n_pairs}"
        )
    return found

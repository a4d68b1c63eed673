"""The tiny bundle with an item filter: every label is an item, and some items have more to hide."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from service.bundle.manifest import MANIFEST
from service.core.labels.item_filter import ITEMS_FILE, ROWS_FILE, STARTS_FILE, write_item_filter
from tests.support.tiny_bundle import N_LABELS, seal

RECIPROCAL = {"P1": (3, 0, 7), "P2": (5,), "L004": (9,)}
"""Item to label rows beside its own: points that are no label, and a label that is a point."""


def write_filtered_bundle(
    source: Path, folder: Path, reciprocal: Mapping[str, Sequence[int]] = RECIPROCAL
) -> Path:
    """Copy a sealed tiny bundle, add a filter of its labels and of these items, seal it again."""
    shutil.copytree(source, folder)
    item_ids = [f"L{row:03d}" for row in range(N_LABELS)]
    rows = list(range(N_LABELS))
    for item_id, others in reciprocal.items():
        item_ids += [item_id] * len(others)
        rows += others
    n_items, n_pairs = write_item_filter(folder, item_ids, np.array(rows))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["filter"] = {
        "files": [ITEMS_FILE, STARTS_FILE, ROWS_FILE],
        "own_item": True,
        "n_items": n_items,
        "n_pairs": n_pairs,
    }
    seal(folder, manifest)
    return folder

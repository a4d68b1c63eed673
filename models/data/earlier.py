"""Earlier: the run that training goes on from (`train.start_from`), and what it was trained on.

Points that the earlier model was trained on never validate the next one: it knows them, and would
stop too late and promise too much on them.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.config import Config
from models.data.dataset import Dataset, point_texts
from models.errors import RunError
from models.runs import LABEL_IDS_FILE, RUN_FILE, TRAINED_ON_FILE, Run, find_run, read_run
from service.atomic import write_array, write_text
from service.bundle.verify import read_manifest, resolve

_BUNDLES_DEPTH = 2
"""A bundle is VAR/bundles/NAME/ID, and its run lies in VAR/runs."""


def earlier_run(path: Path) -> Run:
    """The run in this folder, or the one that sealed the bundle in it.

    Raises RunError where there is no such run, or one that older code trained, and BundleError.
    """
    if (path / RUN_FILE).is_file():
        run = read_run(path)
    else:
        bundle = resolve(path).resolve()
        manifest = read_manifest(bundle)
        config, var = Config.model_validate(manifest.config), bundle.parents[_BUNDLES_DEPTH]
        try:
            run = read_run(find_run(var, config, manifest.data.sha256))
        except RunError as exc:
            raise RunError(
                f"train.start_from {path} is a bundle, which holds no weights to train on, and its "
                f"run is not under {var / 'runs'}: name the folder of its run"
            ) from exc
    for name in (LABEL_IDS_FILE, TRAINED_ON_FILE):
        if not run.has(name):
            raise RunError(
                f"train.start_from {run.folder} lacks {name}, which older code did not write: "
                "train that run anew, or start from another"
            )
    return run


def write_earlier(run: Run, dataset: Dataset, rows: NDArray[np.int64]) -> None:
    """Keep, for a run that goes on from this one, label ids and hashes of the training texts."""
    write_text(run.folder / LABEL_IDS_FILE, json.dumps(dataset.labels.uids))
    hashes = text_hashes(point_texts(dataset.train.take(rows), run.config.data.fields))
    if run.config.train.start_from:
        earlier = earlier_run(Path(run.config.train.start_from))
        hashes = np.concatenate([hashes, np.load(earlier.folder / TRAINED_ON_FILE)])
    write_array(run.folder / TRAINED_ON_FILE, np.unique(hashes))


def trained_on(config: Config, texts: Sequence[str]) -> NDArray[np.bool_]:
    """Whether the model that training goes on from was trained on each text; none without one."""
    if not config.train.start_from:
        return np.zeros(len(texts), np.bool_)
    earlier = earlier_run(Path(config.train.start_from))
    return np.isin(text_hashes(texts), np.load(earlier.folder / TRAINED_ON_FILE))


def text_hashes(texts: Sequence[str]) -> NDArray[np.uint64]:
    """The first eight bytes of each text's BLAKE2b, (n,)."""
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), np.uint64)

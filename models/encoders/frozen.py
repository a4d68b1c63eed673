"""The cache of a frozen transformer: every text goes through the backbone once.

The cache is a memory-mapped file, named by a hash of the backbone's weights, the pooling and the
token ids. So every run, seed and method on the same texts shares it, and a change of any of them
makes a new file. Rows are in half precision; their error is far below that of int8 serving.
"""

import hashlib
import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.data.tokens import TokenizedTexts
from models.encoders.transformer import TransformerEncoder
from models.progress import track
from service.atomic import write_array

log = logging.getLogger(__name__)

_BATCH_TOKENS = 8192  # with padding; a choice between memory and a busy device


def cached_pooled(
    encoder: TransformerEncoder, texts: TokenizedTexts, folder: Path
) -> NDArray[np.float16]:
    """Pooled rows (n, width) of all texts, memory-mapped from a file in `folder`.

    Computes and writes the file where it does not exist yet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_key(encoder, texts)}.npy"
    if not path.is_file():
        log.info("encoding %d texts once, into %s", len(texts), path)
        write_array(path, pool_all(encoder, texts))
    return np.load(path, mmap_mode="r")


@torch.no_grad()
def pool_all(encoder: TransformerEncoder, texts: TokenizedTexts) -> NDArray[np.float16]:
    """Compute the pooled rows (n, width) of all texts, in batches of texts of similar length."""
    device = encoder.projection.weight.device
    rows = np.empty((len(texts), encoder.projection.in_features), np.float16)
    batches = texts.batches_by_length(_BATCH_TOKENS)
    for batch_rows in track(batches, len(batches), "encoding"):
        batch = texts.batch(batch_rows)
        ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
        rows[batch_rows] = encoder.pool(ids.to(device), mask.to(device)).half().cpu().numpy()
    return rows


def _key(encoder: TransformerEncoder, texts: TokenizedTexts) -> str:
    digest = hashlib.sha256(encoder.pooling.encode())
    digest.update(hash_weights(encoder.backbone).encode())
    digest.update(np.ascontiguousarray(texts.offsets).tobytes())
    digest.update(np.ascontiguousarray(texts.ids).tobytes())
    if texts.marks is not None:
        digest.update(np.ascontiguousarray(texts.marks).tobytes())
    return digest.hexdigest()[:32]


def hash_weights(module: nn.Module) -> str:
    """SHA-256 (hex) over the names and values of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

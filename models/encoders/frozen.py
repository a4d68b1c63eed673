"""The frozen regime: every text goes through the backbone once, into a memory-mapped cache.

A cache file is named by what went in (backbone weights, pooling, token ids), so another run, seed
or method on the same texts finds it, and nothing stale is ever read. Rows are half precision:
the difference to fp32 is far below what int8 serving adds.
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

_TOKENS_AT_ONCE = 8192


def cached_pooled(
    encoder: TransformerEncoder, texts: TokenizedTexts, folder: Path
) -> NDArray[np.float16]:
    """Pooled rows (n, width) of all texts, memory-mapped; computed once and kept in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_key(encoder, texts)}.npy"
    if not path.is_file():
        log.info("encoding %d texts once, into %s", len(texts), path)
        write_array(path, pool_all(encoder, texts))
    return np.load(path, mmap_mode="r")


@torch.no_grad()
def pool_all(encoder: TransformerEncoder, texts: TokenizedTexts) -> NDArray[np.float16]:
    """Pooled rows (n, width), in batches of texts of like length, so that little is padded."""
    device = encoder.projection.weight.device
    rows = np.empty((len(texts), encoder.projection.in_features), np.float16)
    batches = texts.batches_by_length(_TOKENS_AT_ONCE)
    for picked in track(batches, len(batches), "encoding"):
        batch = texts.batch(picked)
        ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
        rows[picked] = encoder.pool(ids.to(device), mask.to(device)).half().cpu().numpy()
    return rows


def _key(encoder: TransformerEncoder, texts: TokenizedTexts) -> str:
    digest = hashlib.sha256(encoder.pooling.encode())
    digest.update(hash_weights(encoder.backbone).encode())
    digest.update(np.ascontiguousarray(texts.offsets).tobytes())
    digest.update(np.ascontiguousarray(texts.ids).tobytes())
    return digest.hexdigest()[:32]


def hash_weights(module: nn.Module) -> str:
    """SHA-256 (hex) over the names and values of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

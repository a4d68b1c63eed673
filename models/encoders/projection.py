"""Starts a transformer's map to fewer dimensions at the principal axes of its pooled rows."""

import numpy as np
import torch

from models.data.tokens import TokenizedTexts
from models.encoders.frozen import pool_all
from models.encoders.transformer import TransformerEncoder

SAMPLE_TEXTS = 16_384
"""Texts that the axes are computed on. A choice: sixteen a dimension of the wide encoders."""


@torch.no_grad()
def start_at_principal_axes(encoder: TransformerEncoder, texts: TokenizedTexts) -> None:
    """Set a narrowing projection to the principal axes of the pooled rows of `texts`.

    Of all maps to `dim` dimensions it keeps the inner products of the rows best (Eckart and Young,
    1936). Rows count alike, and are not centred, as an embedding is not. The axes are turned among
    themselves until they lie nearest to the first coordinates (Schoenemann, 1966), because they
    learn worse where a few of them hold most of the rows (docs/lab/trials.md). Where nothing is
    narrowed the projection stays the identity.
    """
    weight = encoder.projection.weight
    dim, width = weight.shape
    if dim >= width:
        return
    sample = texts.take(np.unique(np.linspace(0, len(texts) - 1, SAMPLE_TEXTS, dtype=np.int64)))
    pooled = pool_all(encoder, sample) if sample.pooled is None else sample.pooled
    rows = torch.nn.functional.normalize(torch.from_numpy(pooled.astype(np.float32)), dim=1)
    _, axes = torch.linalg.eigh((rows.T @ rows).double())  # (width, width), the main axis last
    main = axes[:, -dim:].T  # (dim, width)
    left, _, right = torch.linalg.svd(main[:, :dim].T)
    weight.copy_(left @ right @ main)

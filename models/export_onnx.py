"""The trained encoder as an ONNX graph, and the proof that it computes what torch computes.

Batch and length stay dynamic. Tables are stored in half precision and gathered rows are widened, so
the file is half as large and all arithmetic stays fp32.
"""

import logging
import warnings
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import embedding

from models.data.tokens import TokenizedTexts
from models.encoders.bag import EPSILON, BagEncoder, hash_pairs
from models.methods.astra import Servable, embed
from service.bundle import ParityInfo
from service.core.encoder import ATTENTION_MASK, INPUT_IDS, OnnxEncoder

OPSET: Final = 18
PRECISION: Final = "fp16"
_TEXTS_AT_ONCE = 256


class BagGraph(nn.Module):
    """BagEncoder over padded batches, as it is traced: same sums, half-precision tables."""

    def __init__(self, encoder: BagEncoder) -> None:
        super().__init__()
        self.register_buffer("words", encoder.words.weight.detach().half())
        self.register_buffer("pairs", encoder.pairs.weight.detach().half())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask (n, length) to unit rows (n, dim)."""
        words, pairs = self.get_buffer("words"), self.get_buffer("pairs")
        mask = attention_mask.float().unsqueeze(2)  # (n, length, 1)
        pair_ids = hash_pairs(input_ids, pairs.shape[0])  # (n, length - 1)
        summed = (embedding(input_ids, words).float() * mask).sum(dim=1)
        summed = summed + (embedding(pair_ids, pairs).float() * mask[:, 1:]).sum(dim=1)
        return summed / summed.norm(dim=1, keepdim=True).clamp(min=EPSILON)


def export(encoder: BagEncoder, path: Path) -> None:
    """Trace the encoder into `path`; weights lie inside the file."""
    # Two tensors: given one twice, the tracer takes both inputs for the same.
    ids, mask = (torch.ones(2, 8, dtype=torch.int64) for _ in range(2))
    axes = {0: torch.export.Dim("n"), 1: torch.export.Dim("length", min=2)}
    # It would warn four times that torchvision, which is not needed, is not there.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # The exporter warns that two inputs share an axis, which is what is wanted, and of its own
        # use of functions that torch has deprecated.
        warnings.simplefilter("ignore", (UserWarning, FutureWarning))
        program = torch.onnx.export(
            BagGraph(encoder).eval(),
            (ids, mask),
            input_names=[INPUT_IDS, ATTENTION_MASK],
            output_names=["embeddings"],
            dynamic_shapes=(axes, axes),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # torch types it as optional for its older exporter
    program.save(str(path), external_data=False)


def encode_with(encoder: OnnxEncoder, texts: TokenizedTexts) -> NDArray[np.float32]:
    """Embeddings (n, dim) of tokenized texts through the graph that serves."""
    rows = np.empty((len(texts), encoder.dim), np.float32)
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        picked = np.arange(start, min(start + _TEXTS_AT_ONCE, len(texts)))
        rows[picked] = encoder.encode(texts.batch(picked))
    return rows


def parity(parts: Servable, exported: NDArray[np.float32], texts: TokenizedTexts) -> ParityInfo:
    """Compare exported embeddings of `texts` with torch's, and the labels that both put first."""
    expected = embed(parts.encoder, texts)
    vectors = parts.label_vectors.T
    same = (expected @ vectors).argmax(axis=1) == (exported @ vectors).argmax(axis=1)
    return ParityInfo(
        max_abs_diff=float(np.abs(expected - exported).max()),
        top1_agreement=float(same.mean()),
        n_queries=len(texts),
    )

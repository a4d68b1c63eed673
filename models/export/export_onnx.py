"""The trained encoder as an ONNX graph, and the proof that it computes what torch computes.

Batch and length stay dynamic. The graph is traced once, in fp32; the other precisions are made from
it by models.export.precision, and chosen among by models.export.precisions.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import embedding

from models.data.tokens import TokenizedTexts
from models.encoders.bag import EPSILON, BagEncoder, hash_pairs
from models.encoders.build import TextEncoder, transformer_of
from models.encoders.transformer import BagTransformer
from service.bundle.manifest import ParityInfo
from service.core.encoding.encoder import ATTENTION_MASK, INPUT_IDS, Encoder

# From 20 on GELU is one operator, which ONNX Runtime fuses with the bias before it.
OPSET: Final = 20
_TOKENS_AT_ONCE = 8192


class PaddedBag(BagEncoder):
    """A bag over padded batches, as it is traced: the same sums, without picking rows by mask."""

    def __init__(self, bag: BagEncoder) -> None:
        super().__init__(bag.words.weight.detach(), bag.pairs.num_embeddings)
        self.pairs = bag.pairs

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pooled: Tensor | None = None
    ) -> Tensor:
        """Token ids and mask (n, length) to unit rows (n, dim)."""
        mask = attention_mask.float().unsqueeze(2)  # (n, length, 1)
        pair_ids = hash_pairs(input_ids, self.pairs.num_embeddings)  # (n, length - 1)
        summed = (embedding(input_ids, self.words.weight) * mask).sum(dim=1)
        summed = summed + (embedding(pair_ids, self.pairs.weight) * mask[:, 1:]).sum(dim=1)
        return summed / summed.norm(dim=1, keepdim=True).clamp(min=EPSILON)


def trace(encoder: TextEncoder) -> onnx.ModelProto:
    """The encoder's graph in fp32; each node still says which module it came from."""
    # Two tensors: given one twice, the tracer takes both inputs for the same.
    ids, mask = (torch.ones(2, 8, dtype=torch.int64) for _ in range(2))
    axes = {0: torch.export.Dim("n"), 1: torch.export.Dim("length", min=2)}
    # It would warn four times that torchvision, which is not needed, is not there.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), _eager_attention(encoder):
        # The exporter warns that two inputs share an axis, which is what is wanted, and of its own
        # use of functions that torch has deprecated.
        warnings.simplefilter("ignore", (UserWarning, FutureWarning, DeprecationWarning))
        program = torch.onnx.export(
            _traceable(encoder).eval(),
            (ids, mask),
            input_names=[INPUT_IDS, ATTENTION_MASK],
            output_names=["embeddings"],
            dynamic_shapes=(axes, axes),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # torch types it as optional for its older exporter
    return program.model_proto


def _traceable(encoder: TextEncoder) -> nn.Module:
    if isinstance(encoder, BagEncoder):
        return PaddedBag(encoder)
    if isinstance(encoder, BagTransformer):
        return BagTransformer(PaddedBag(encoder.bag), encoder.transformer)
    return encoder


@contextmanager
def _eager_attention(encoder: TextEncoder) -> Iterator[None]:
    """Attention spelt out: the fused one is traced with a guard, in every layer, for empty texts.

    There are none, for every text has its special tokens.
    """
    transformer = transformer_of(encoder)
    if transformer is None:
        yield
        return
    backbone: Any = transformer.backbone
    before = backbone.config._attn_implementation
    backbone.set_attn_implementation("eager")
    try:
        yield
    finally:
        backbone.set_attn_implementation(before)


def encode_with(encoder: Encoder, texts: TokenizedTexts) -> NDArray[np.float32]:
    """Embeddings (n, dim) of tokenized texts through the graph that serves."""
    rows = np.empty((len(texts), encoder.dim), np.float32)
    for picked in texts.batches_by_length(_TOKENS_AT_ONCE):
        rows[picked] = encoder.encode(texts.batch(picked))
    return rows


def parity(
    expected: NDArray[np.float32],
    exported: NDArray[np.float32],
    first: Callable[[NDArray[np.float32]], NDArray[np.int64]],
) -> ParityInfo:
    """Compare exported embeddings (n, dim) with torch's, and the labels `first` (n, 1) of both."""
    same = first(expected) == first(exported)
    return ParityInfo(
        max_abs_diff=float(np.abs(expected - exported).max()),
        top1_agreement=float(same.mean()),
        n_queries=len(expected),
    )

"""Traces the trained encoder to an ONNX graph, and compares the graph with torch.

Batch size and length stay dynamic. The graph is traced once, in fp32. models.export.precision makes
the other precisions from it, and models.export.precisions chooses one to serve.
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
from models.encoders.bag import EPSILON, BagEncoder, hash_pairs, view_masks
from models.encoders.build import TextEncoder, transformer_of
from models.encoders.transformer import BagTransformer
from service.bundle.manifest import ParityInfo
from service.core.encoding.encoder import ATTENTION_MASK, INPUT_IDS, Encoder

# Since 20 GELU is one operator, which ONNX Runtime fuses with the bias before it
# (docs/decisions/0009).
OPSET: Final = 20
_BATCH_TOKENS = 8192  # with padding; a choice: more tokens take more memory


class PaddedBag(BagEncoder):
    """A bag for the tracer: it multiplies by the mask where BagEncoder selects rows by it."""

    def __init__(self, bag: BagEncoder) -> None:
        super().__init__(bag.words.weight.detach(), bag.pairs.num_embeddings, bag.fields)
        self.pairs = bag.pairs

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pooled: Tensor | None = None
    ) -> Tensor:
        """Embed token ids and mask (n, length) as unit rows (n, dim)."""
        pair_ids = hash_pairs(input_ids, self.pairs.num_embeddings)  # (n, length - 1)
        words = embedding(input_ids, self.words.weight)
        pairs = embedding(pair_ids, self.pairs.weight)
        views = []
        for view in view_masks(attention_mask, self.fields):
            mask = view.float().unsqueeze(2)  # (n, length, 1)
            views.append((words * mask).sum(dim=1) + (pairs * mask[:, 1:]).sum(dim=1))
        rows = [_unit(view) for view in views]
        return rows[0] if len(rows) == 1 else _unit(torch.cat(rows, dim=1))


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=EPSILON)


def trace(encoder: TextEncoder) -> onnx.ModelProto:
    """Trace the encoder to a graph in fp32, whose nodes still name the modules they came from."""
    # Two tensors, because the tracer would take one tensor in two places for one input.
    ids, mask = (torch.ones(2, 8, dtype=torch.int64) for _ in range(2))
    axes = {0: torch.export.Dim("n"), 1: torch.export.Dim("length", min=2)}
    # The exporter would warn four times that torchvision is missing, which nothing here needs.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), _eager_attention(encoder):
        # The exporter warns that two inputs share an axis, as they should. It also warns of its own
        # calls to functions that torch has deprecated.
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
    """Switch the transformer to the eager attention.

    The tracer adds a guard for empty texts to the fused attention of every layer. A transformer's
    text is never empty, because it has special tokens.
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
    """Embed tokenized texts with an exported graph; (n, dim) float32."""
    rows = np.empty((len(texts), encoder.dim), np.float32)
    for batch in texts.batches_by_length(_BATCH_TOKENS):
        rows[batch] = encoder.encode(texts.batch(batch))
    return rows


def parity(
    expected: NDArray[np.float32],
    exported: NDArray[np.float32],
    first: Callable[[NDArray[np.float32]], NDArray[np.int64]],
) -> ParityInfo:
    """Compare the exported graph's embeddings (n, dim) with torch's, `expected`.

    `first` gives the best label rows (n, 1) of embeddings; the two graphs' best labels are compared
    as well.
    """
    same = first(expected) == first(exported)
    return ParityInfo(
        max_abs_diff=float(np.abs(expected - exported).max()),
        top1_agreement=float(same.mean()),
        n_queries=len(expected),
    )

"""Builds an encoder and its tokenizer from a configuration or from a run's weights, and runs it."""

from contextlib import ExitStack
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.config import AUTO, EncoderConfig
from models.data.tokens import TokenizedTexts
from models.encoders.bag import BagEncoder, build_bag, read_tokenizer
from models.encoders.source import SCRATCH, TOKENIZER_FILE, locate
from models.encoders.transformer import (
    BagTransformer,
    TransformerEncoder,
    build_backbone,
    load_backbone,
    positions_of,
)
from models.encoders.usage import resolve_encoder
from models.errors import SourceError

TextEncoder: TypeAlias = BagEncoder | TransformerEncoder | BagTransformer
"""Has `dim`, and forward(input_ids, attention_mask, pooled=None) that gives unit rows (n, dim)."""

# Tokens, with padding, that are cut from a data set to embed it, and that go through a transformer
# together. Choices: more tokens take more memory, fewer keep the device less busy.
_EMBED_TOKENS = 16384
_PASS_TOKENS = 4096


def build_encoder(config: EncoderConfig, texts: list[str], seed: int) -> tuple[TextEncoder, str]:
    """Build an untrained encoder and its tokenizer.json.

    A bag with the source `scratch` trains its tokenizer on `texts`; others ignore them. Raises
    SourceError.
    """
    if config.kind == "bag":
        return build_bag(config, texts, seed)
    if config.source == SCRATCH:
        raise SourceError(
            f"encoder.kind {config.kind} needs a pretrained encoder.source: scratch is for bags"
        )
    config, folder = resolve_encoder(config), locate(config.source)
    backbone = load_backbone(folder).requires_grad_(not config.frozen)
    positions = positions_of(backbone)
    limit, key = sum(config.limits), "field_tokens" if config.field_tokens else "max_tokens"
    if positions is not None and limit > positions:
        raise SourceError(
            f"encoder.source {config.source} reads at most {positions} tokens, "
            f"encoder.{key} is {limit}: lower it"
        )
    transformer = _transformer(config, backbone)
    if config.kind == "transformer":
        return transformer, read_tokenizer(folder / TOKENIZER_FILE).to_str()
    bag, tokenizer = build_bag(config, texts, seed)
    return BagTransformer(bag, transformer), tokenizer


def empty_encoder(
    config: EncoderConfig, weights: dict[str, Tensor], architecture: str | None
) -> TextEncoder:
    """Build an encoder whose shapes fit `weights` (names as in its state_dict), to load them into.

    `architecture` is the transformer's as `architecture_of` gives it, None for a bag alone.
    """

    def bag(prefix: str) -> BagEncoder:
        words = weights[f"{prefix}words.weight"]
        return BagEncoder(words, config.pair_buckets, len(config.limits))

    if architecture is None:
        return bag("")
    backbone = build_backbone(architecture).requires_grad_(not config.frozen)
    transformer = _transformer(config, backbone)
    if config.kind == "transformer":
        return transformer
    return BagTransformer(bag("bag."), transformer)


def _transformer(config: EncoderConfig, backbone: nn.Module) -> TransformerEncoder:
    assert config.pooling != AUTO  # a run's configuration is resolved
    return TransformerEncoder(backbone, config.pooling, config.dim, len(config.limits))


def transformer_of(encoder: TextEncoder) -> TransformerEncoder | None:
    """The encoder's transformer, None where it has none."""
    if isinstance(encoder, BagTransformer):
        return encoder.transformer
    return encoder if isinstance(encoder, TransformerEncoder) else None


def bag_of(encoder: TextEncoder) -> BagEncoder | None:
    """The encoder's bag, None where it has none."""
    if isinstance(encoder, BagTransformer):
        return encoder.bag
    return encoder if isinstance(encoder, BagEncoder) else None


def parameter_groups(encoder: TextEncoder) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters by optimizer group.

    The groups are `tables` (row-sparse gradients), `projection` and `transformer`, without those
    that have no parameters.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    if (bag := bag_of(encoder)) is not None:
        groups["tables"] = list(bag.parameters())
    if (transformer := transformer_of(encoder)) is not None:
        groups["projection"] = list(transformer.projection.parameters())
        groups["transformer"] = [p for p in transformer.backbone.parameters() if p.requires_grad]
    return {name: parameters for name, parameters in groups.items() if parameters}


def encode_batch(
    encoder: TextEncoder,
    texts: TokenizedTexts,
    rows: NDArray[np.int64],
    autocast: torch.dtype | None = None,
) -> Tensor:
    """Embed the texts of these rows as unit rows (len(rows), dim) float32, on the encoder's device.

    `autocast` is the type that the encoder computes in, None for fp32.
    """
    if transformer_of(encoder) is None or texts.pooled is not None:
        return _encode(encoder, texts, rows, autocast)
    # A transformer computes padding too, so texts of similar length go through it together.
    parts = texts.take(rows).batches_by_length(_PASS_TOKENS)
    encoded = torch.cat([_encode(encoder, texts, rows[part], autocast) for part in parts])
    places = torch.from_numpy(np.argsort(np.concatenate(parts)))
    return encoded[places.to(encoded.device)]


def _encode(
    encoder: TextEncoder,
    texts: TokenizedTexts,
    rows: NDArray[np.int64],
    autocast: torch.dtype | None,
) -> Tensor:
    device = next(encoder.parameters()).device
    batch = texts.batch(rows)
    pooled = None
    if texts.pooled is not None:
        pooled = torch.from_numpy(texts.pooled[rows]).to(device).float()
    ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
    with ExitStack() as contexts:
        if autocast is not None:
            contexts.enter_context(torch.autocast(device.type, autocast))
            if device.type == "cpu":
                # On a CPU the fused attention's backward pass takes three times as long in half
                # precision.
                contexts.enter_context(sdpa_kernel(SDPBackend.MATH))
        encoded: Tensor = encoder(ids.to(device), mask.to(device), pooled)
    return encoded.float()


@torch.no_grad()
def embed(
    encoder: TextEncoder, texts: TokenizedTexts, autocast: torch.dtype | None = None
) -> NDArray[np.float32]:
    """Embeddings of all texts, without dropout: (n, dim) float32."""
    rows = np.empty((len(texts), encoder.dim), np.float32)
    for batch in texts.batches_by_length(_EMBED_TOKENS):
        rows[batch] = encode_batch(encoder, texts, batch, autocast).cpu().numpy()
    return rows

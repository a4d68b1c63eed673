"""The transformer encoder: an encoder-only backbone, pooling, a linear map and unit norm.

The backbone is any model of transformers that reads token ids and mask and gives a state a token;
tests/models/export/test_export_onnx_architectures.py names those that are known to work.

`BagTransformer` puts a bag beside a `TransformerEncoder`, because a pooled average loses rare
words. It concatenates the embeddings of both.

Both encoders take an optional `pooled`, rows that the backbone computed earlier. With a frozen
backbone these come from a cache (models.encoders.frozen); then training runs and changes only the
linear map and the bag. Mean pooling: Reimers and Gurevych, 2019 (Sentence-BERT).

The functions that need transformers import it: it takes a second, and most jobs train a bag alone.
"""

import json
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from models.encoders.bag import BagEncoder, view_masks
from models.encoders.source import CONFIG_FILE
from models.errors import SourceError

EPSILON = 1e-6  # least norm to divide by, as in the bag
Pooling = Literal["mean", "cls"]


class TransformerEncoder(nn.Module):
    """`backbone` gives (n, length, width); `projection` maps its pooled rows to (n, dim)."""

    def __init__(self, backbone: nn.Module, pooling: Pooling, dim: int, fields: int = 1) -> None:
        super().__init__()
        self.fields = fields
        self.backbone = backbone
        self.pooling = pooling
        self.projection = nn.Linear(width_of(backbone), dim, bias=False)
        # The identity where both widths are the same, so that training starts from the backbone.
        # models.encoders.projection starts a narrower one.
        nn.init.eye_(self.projection.weight)

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return int(self.projection.out_features)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pooled: Tensor | None = None
    ) -> Tensor:
        """Embed token ids and mask (n, length), or pooled (n, width), as unit rows (n, dim)."""
        if pooled is None:
            pooled = self.pool(input_ids, attention_mask)
        return nn.functional.normalize(self.projection(pooled), dim=1, eps=EPSILON)

    def pool(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Pool the backbone's last layer to (n, width): the mean of all tokens, or [CLS] alone.

        The backbone reads all fields of a text at once. The mean is that of the fields' means, so
        that a long field does not drown a short one.
        """
        read = attention_mask if self.fields == 1 else (attention_mask > 0).to(attention_mask.dtype)
        last = self.backbone(input_ids=input_ids, attention_mask=read).last_hidden_state
        if self.pooling == "cls":
            return last[:, 0]
        masks = [m.to(last.dtype).unsqueeze(2) for m in view_masks(attention_mask, self.fields)]
        means = [(last * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0) for mask in masks]
        if len(means) == 1:
            return means[0]
        given = torch.stack([mask.amax(dim=1) for mask in masks])  # (fields, n, 1) of 0 and 1
        return torch.stack(means).sum(dim=0) / given.sum(dim=0).clamp(min=1.0)


class BagTransformer(nn.Module):
    """A bag and a transformer over the same tokens; it concatenates both into rows of unit norm."""

    def __init__(self, bag: BagEncoder, transformer: TransformerEncoder) -> None:
        super().__init__()
        self.bag = bag
        self.transformer = transformer

    @property
    def dim(self) -> int:
        """Width of an embedding, the sum of both widths."""
        return self.bag.dim + self.transformer.dim

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pooled: Tensor | None = None
    ) -> Tensor:
        """Embed token ids and mask (n, length) as unit rows (n, dim).

        `pooled` (n, width) takes the place of the backbone's output.
        """
        halves = (
            self.bag(input_ids, attention_mask),
            self.transformer(input_ids, attention_mask, pooled),
        )
        return torch.cat(halves, dim=1) * 2**-0.5


def width_of(backbone: nn.Module) -> int:
    """Width of the backbone's hidden states."""
    return int(backbone.config.hidden_size)  # type: ignore[union-attr,arg-type]


def positions_of(backbone: nn.Module) -> int | None:
    """The most tokens that the backbone has positions for; None where it sets no limit."""
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    if not isinstance(table, nn.Embedding):
        return None
    # RoBERTa and its relatives number positions from the one after the padding id.
    first = 0 if table.padding_idx is None else table.padding_idx + 1
    return table.num_embeddings - first


def load_backbone(folder: Path) -> nn.Module:
    """Load the pretrained backbone of a source folder, in fp32. Raises SourceError."""
    if not (folder / CONFIG_FILE).is_file():
        raise SourceError(
            f"{folder / CONFIG_FILE} is not there: a transformer needs it, so name a source that "
            "has one"
        )
    from transformers import AutoModel
    from transformers.utils import logging as library

    library.disable_progress_bar()
    library.set_verbosity_error()
    try:
        model, loading_info = AutoModel.from_pretrained(
            str(folder),
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as exc:  # the library raises many unrelated types for unfit files
        reason = " ".join(str(exc).split())
        raise SourceError(f"{folder} holds no transformer that can be loaded: {reason}") from exc
    if getattr(model.config, "is_encoder_decoder", False):
        raise SourceError(
            f"{folder} holds {type(model).__name__}, an encoder with a decoder: name a source that "
            "is an encoder alone"
        )
    # The library itself would fill missing weights with random numbers and go on.
    keys = loading_info["missing_keys"]
    missing = sorted(name for name in keys if not name.startswith("pooler."))
    if missing:
        raise SourceError(f"{folder} lacks {len(missing)} weights, such as {missing[0]}")
    return _without_pooler(model)


def build_backbone(architecture: str) -> nn.Module:
    """Build an untrained backbone from the JSON that `architecture_of` gave, in fp32."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(**json.loads(architecture))
    model = AutoModel.from_config(config, dtype=torch.float32)
    return _without_pooler(model)


def architecture_of(backbone: nn.Module) -> str:
    """The backbone's configuration as JSON, for `build_backbone`."""
    from transformers import PreTrainedConfig

    config = backbone.config
    assert isinstance(config, PreTrainedConfig)
    return str(config.to_json_string(use_diff=False))


def _without_pooler(model: nn.Module) -> nn.Module:
    """Remove the model's own pooling layer, which would be trained and stored without any use."""
    if getattr(model, "pooler", None) is not None:
        model.register_module("pooler", None)
    return model.eval()

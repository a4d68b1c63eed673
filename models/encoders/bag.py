"""The bag encoder: word vectors plus vectors of hashed neighbouring pairs, summed, to unit norm.

It has no layers, so one text costs a few microseconds on a CPU; what order of words it knows, it
knows from the pairs. Pairs are hashed by `hash_pairs`, which is also traced into the ONNX graph, so
training and serving cannot hash differently. The mean of the design is a sum here: after scaling to
unit norm the two are the same vector. The graph that serves is models.export.export_onnx's: it has
the same arithmetic over padded batches, and the parity gate compares the two.

Hashing of pieces into a fixed table: Weinberger et al., 2009. Bags of pieces and pairs as a text
encoder: Joulin et al., 2017 (fastText).
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models as tokenizer_models
from tokenizers import normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from models.config import EncoderConfig
from models.encoders.source import TOKENIZER_FILE, locate, word_vectors
from models.errors import SourceError
from service.core.encoding.text import normalise

_FIRST_FACTOR = 1_000_003
_SECOND_FACTOR = 7_919
_HASH_PRIME = 2_147_483_647
EPSILON = 1e-6
_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


class BagEncoder(nn.Module):
    """`words` (vocabulary, dim) and `pairs` (buckets, dim); gradients are row-sparse."""

    def __init__(self, words: Tensor, pair_buckets: int) -> None:
        super().__init__()
        self.words = nn.Embedding.from_pretrained(words, freeze=False, sparse=True)
        self.pairs = nn.Embedding.from_pretrained(
            torch.zeros(pair_buckets, words.shape[1]), freeze=False, sparse=True
        )

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return int(self.words.embedding_dim)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pooled: Tensor | None = None
    ) -> Tensor:
        """Token ids and mask (n, length) to unit rows (n, dim); `pooled` is for transformers."""
        words = _masked_sum(self.words, input_ids, attention_mask)  # (n, dim)
        pair_ids = hash_pairs(input_ids, self.pairs.num_embeddings)  # (n, length - 1)
        pairs = _masked_sum(self.pairs, pair_ids, attention_mask[:, 1:])
        return nn.functional.normalize(words + pairs, dim=1, eps=EPSILON)

    @torch.no_grad()
    def weigh_words(self, token_ids: NDArray[np.int32], smoothing: float) -> None:
        """Scale each word vector by smoothing / (smoothing + its share of `token_ids`).

        Smooth inverse frequency (Arora et al., 2017): frequent words say little, and a sum that
        starts without them learns in half the epochs.
        """
        counts = np.bincount(token_ids, minlength=self.words.num_embeddings)
        weights = smoothing / (smoothing + counts / max(1, counts.sum()))
        column = torch.from_numpy(weights).float().unsqueeze(1)
        self.words.weight.mul_(column.to(self.words.weight.device))


def hash_pairs(input_ids: Tensor, buckets: int) -> Tensor:
    """Bucket of every neighbouring pair, (n, length) to (n, length - 1).

    Reducing by a prime first keeps a power-of-two table from seeing only the low bits.
    """
    mixed = input_ids[:, :-1] * _FIRST_FACTOR + input_ids[:, 1:] * _SECOND_FACTOR
    return mixed % _HASH_PRIME % buckets


def _masked_sum(table: nn.Embedding, ids: Tensor, mask: Tensor) -> Tensor:
    """Sum of the rows that the mask keeps: (n, length) to (n, dim), padding never gathered."""
    keep = mask.bool()
    lengths = keep.sum(dim=1)
    starts = torch.cumsum(lengths, dim=0) - lengths
    return nn.functional.embedding_bag(ids[keep], table.weight, starts, mode="sum", sparse=True)


def build_bag(config: EncoderConfig, texts: list[str], seed: int) -> tuple[BagEncoder, str]:
    """A fresh encoder and its tokenizer.json; `texts` are read only by `source = "scratch"`.

    Raises SourceError.
    """
    if config.source == "scratch":
        tokenizer = train_tokenizer(texts, config.scratch_vocabulary)
        generator = np.random.default_rng(seed)
        shape = (tokenizer.get_vocab_size(), config.dim)
        vectors = generator.standard_normal(shape, np.float32)
        return BagEncoder(_centred(vectors), config.pair_buckets), tokenizer.to_str()
    folder = locate(config.source)
    vectors = word_vectors(folder)
    if vectors.shape[1] != config.dim:
        raise SourceError(
            f"encoder.source {config.source} has word vectors of {vectors.shape[1]}, "
            f"encoder.dim is {config.dim}: set encoder.dim to {vectors.shape[1]}"
        )
    tokenizer = read_tokenizer(folder / TOKENIZER_FILE)
    return BagEncoder(_centred(vectors), config.pair_buckets), tokenizer.to_str()


def read_tokenizer(path: Path) -> FastTokenizer:
    """The source's tokenizer without its own padding and truncation. Raises SourceError."""
    try:
        tokenizer = FastTokenizer.from_file(str(path))
    except Exception as exc:  # the library raises bare Exception for any unreadable file
        raise SourceError(f"{path} is not a tokenizer.json: {exc}") from exc
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def train_tokenizer(texts: list[str], vocabulary: int) -> FastTokenizer:
    """A lower-casing BPE tokenizer learnt from `texts`, with [CLS] and [SEP] round a text.

    BPE, because the library's WordPiece and Unigram trainers number the same pieces differently
    from run to run, and a run must repeat.
    """
    tokenizer = FastTokenizer(tokenizer_models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(_SPECIAL_TOKENS), show_progress=False
    )
    tokenizer.train_from_iterator((normalise(text) for text in texts), trainer)
    numbers = tokenizer.get_vocab()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", numbers["[SEP]"]), ("[CLS]", numbers["[CLS]"])
    )
    return tokenizer


def _centred(vectors: NDArray[np.float32]) -> Tensor:
    """Pretrained vectors share one large direction, which would make every two texts alike."""
    centred = vectors - vectors.mean(axis=0)
    return torch.from_numpy(centred / np.linalg.norm(centred, axis=1).mean())

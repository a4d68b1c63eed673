"""The bag encoder: the sum of word vectors and of vectors of neighbouring pairs, at unit norm.

It has no layers, so one text costs a few microseconds on a CPU. Only the pairs tell it about the
order of words. `hash_pairs` maps a pair to a row of a fixed table. The tracer puts the same
function into the ONNX graph, so training and serving cannot hash differently. A sum serves as well
as a mean, because the two are the same vector at unit norm. models.export.export_onnx makes the
graph that serves; it does the same arithmetic over padded batches, and the parity gate compares
the two.

Hashing of features into a fixed table: Weinberger et al., 2009. Bags of words and pairs as a text
encoder: Joulin et al., 2017 (fastText).
"""

import re
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
from models.sparse_rows import bag_sums
from service.core.encoding.text import normalise

# Three primes; the last is 2^31 - 1. They are a choice, and part of every trained table: with other
# numbers a trained encoder would read the wrong rows.
_FIRST_FACTOR = 1_000_003
_SECOND_FACTOR = 7_919
_HASH_PRIME = 2_147_483_647
EPSILON = 1e-6  # least norm to divide by; a choice, far below the norm of any text
MAX_WORD_CHARS = 100
"""A longer word is trained on in pieces of so many characters; BERT's WordPiece reads no longer one
(Devlin et al., 2019). The trainer's time grows with the square of a word: 40,000 characters take
four seconds, a million never end."""
_LONG_WORD = re.compile(rf"\S{{{MAX_WORD_CHARS}}}(?=\S)")
_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


class BagEncoder(nn.Module):
    """Two tables, `words` (vocabulary, dim) and `pairs` (buckets, dim), with row-sparse gradients.

    `words` of the constructor are the initial word vectors (vocabulary, dim). Pairs start at zero.
    """

    def __init__(self, words: Tensor, pair_buckets: int) -> None:
        super().__init__()
        self.words = nn.Embedding.from_pretrained(words, freeze=False)
        pairs = torch.zeros(pair_buckets, words.shape[1])
        self.pairs = nn.Embedding.from_pretrained(pairs, freeze=False)

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return int(self.words.embedding_dim)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pooled: Tensor | None = None
    ) -> Tensor:
        """Embed token ids and mask (n, length) as unit rows (n, dim); a bag ignores `pooled`."""
        words = _masked_sum(self.words, input_ids, attention_mask)  # (n, dim)
        pair_ids = hash_pairs(input_ids, self.pairs.num_embeddings)  # (n, length - 1)
        pairs = _masked_sum(self.pairs, pair_ids, attention_mask[:, 1:])
        return nn.functional.normalize(words + pairs, dim=1, eps=EPSILON)

    @torch.no_grad()
    def weigh_words(self, token_ids: NDArray[np.int32], smoothing: float) -> None:
        """Scale each word vector by smoothing / (smoothing + its share of `token_ids`).

        This is smooth inverse frequency (Arora et al., 2017). Frequent words say little, and a sum
        that starts without them learns in half the epochs (docs/decisions/0005).
        """
        counts = np.bincount(token_ids, minlength=self.words.num_embeddings)
        weights = smoothing / (smoothing + counts / max(1, counts.sum()))
        column = torch.from_numpy(weights).float().unsqueeze(1)
        self.words.weight.mul_(column.to(self.words.weight.device))


def hash_pairs(input_ids: Tensor, buckets: int) -> Tensor:
    """The bucket of every neighbouring pair: token ids (n, length) to buckets (n, length - 1).

    The first remainder is by a prime. Without it a table with a power of two of buckets would use
    only the low bits.
    """
    mixed = input_ids[:, :-1] * _FIRST_FACTOR + input_ids[:, 1:] * _SECOND_FACTOR
    return mixed % _HASH_PRIME % buckets


def _masked_sum(table: nn.Embedding, ids: Tensor, mask: Tensor) -> Tensor:
    """Sum the table's rows of the unmasked ids: (n, length) to (n, dim). It reads no padding."""
    unmasked = mask.bool()
    return bag_sums(table.weight, ids[unmasked], unmasked.sum(dim=1))


def build_bag(config: EncoderConfig, texts: list[str], seed: int) -> tuple[BagEncoder, str]:
    """Build an untrained bag and its tokenizer.json.

    With the source `scratch` it trains the tokenizer on `texts`, otherwise it ignores them. Raises
    SourceError.
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
    """Read the source's tokenizer and turn off its padding and truncation. Raises SourceError."""
    try:
        tokenizer = FastTokenizer.from_file(str(path))
    except Exception as exc:  # the library raises bare Exception for any unreadable file
        raise SourceError(f"{path} is not a tokenizer.json: {exc}") from exc
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def train_tokenizer(texts: list[str], vocabulary: int) -> FastTokenizer:
    """Train a lower-casing BPE tokenizer on `texts`; it puts [CLS] and [SEP] round a text.

    A run must be repeatable. The library's trainers of WordPiece and Unigram number the same pieces
    differently from run to run; its BPE trainer does not.
    """
    tokenizer = FastTokenizer(tokenizer_models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(_SPECIAL_TOKENS), show_progress=False
    )
    pieces = (_LONG_WORD.sub(r"\g<0> ", normalise(text)) for text in texts)
    tokenizer.train_from_iterator(pieces, trainer)
    numbers = tokenizer.get_vocab()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", numbers["[SEP]"]), ("[CLS]", numbers["[CLS]"])
    )
    return tokenizer


def _centred(vectors: NDArray[np.float32]) -> Tensor:
    """Subtract the mean vector and scale to a mean norm of one.

    Pretrained vectors share one large direction, which would make all texts alike.
    """
    centred = vectors - vectors.mean(axis=0)
    return torch.from_numpy(centred / np.linalg.norm(centred, axis=1).mean())

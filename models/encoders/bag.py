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
from models.encoders.source import SCRATCH, TOKENIZER_FILE, locate, word_vectors
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
    Each of `fields` views of a text is summed by itself, over the same tables. The embedding is all
    sums side by side, each of the same norm, so that a long field does not drown a short one.
    """

    def __init__(self, words: Tensor, pair_buckets: int, fields: int = 1) -> None:
        super().__init__()
        self.fields = fields
        self.words = nn.Embedding.from_pretrained(words, freeze=False)
        pairs = torch.zeros(pair_buckets, words.shape[1])
        self.pairs = nn.Embedding.from_pretrained(pairs, freeze=False)

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return int(self.words.embedding_dim) * self.fields

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pooled: Tensor | None = None
    ) -> Tensor:
        """Embed token ids and mask (n, length) as unit rows (n, dim); a bag ignores `pooled`."""
        views = view_masks(attention_mask, self.fields)
        return side_by_side([self._sum(input_ids, mask) for mask in views])

    def _sum(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """The sum (n, dim) of the vectors of the unmasked words, and of pairs that end in one."""
        words = _masked_sum(self.words, input_ids, mask)  # (n, dim)
        pair_ids = hash_pairs(input_ids, self.pairs.num_embeddings)  # (n, length - 1)
        return words + _masked_sum(self.pairs, pair_ids, mask[:, 1:])

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


def view_masks(attention_mask: Tensor, fields: int) -> list[Tensor]:
    """For each field a mask (n, length) of its tokens, by their marks in `attention_mask`."""
    if fields == 1:
        return [attention_mask]
    return [(attention_mask == number).to(attention_mask.dtype) for number in range(1, fields + 1)]


def side_by_side(views: list[Tensor]) -> Tensor:
    """Views (n, dim) beside each other, as unit rows (n, fields * dim); a view may be zeros."""
    rows = [nn.functional.normalize(view, dim=1, eps=EPSILON) for view in views]
    if len(rows) == 1:
        return rows[0]
    return nn.functional.normalize(torch.cat(rows, dim=1), dim=1, eps=EPSILON)


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
    if config.source == SCRATCH:
        tokenizer = train_tokenizer(texts, config.scratch_vocabulary)
    else:
        tokenizer = read_tokenizer(locate(config.source) / TOKENIZER_FILE)
    words = torch.from_numpy(_words(config, tokenizer, seed))
    bag = BagEncoder(words, config.pair_buckets, len(config.limits))
    return bag, tokenizer.to_str()


def _words(config: EncoderConfig, tokenizer: FastTokenizer, seed: int) -> NDArray[np.float32]:
    """The first word vectors (vocabulary, dim) for the tokenizer, by `bag_source`."""
    source = config.bag_source or config.source
    if source == SCRATCH:
        shape = (tokenizer.get_vocab_size(), config.dim)
        return _centred(np.random.default_rng(seed).standard_normal(shape, np.float32))
    folder = locate(source)
    vectors = word_vectors(folder)
    if vectors.shape[1] != config.dim:
        key = "bag_source" if config.bag_source else "source"
        raise SourceError(
            f"encoder.{key} {source} has word vectors of {vectors.shape[1]}, encoder.dim is "
            f"{config.dim}: set encoder.dim to {vectors.shape[1]}, or let the words come from "
            "another encoder.bag_source"
        )
    vectors = _centred(vectors)
    if source == config.source:
        return vectors
    return transfer_words(vectors, read_tokenizer(folder / TOKENIZER_FILE), tokenizer)


def transfer_words(
    vectors: NDArray[np.float32], theirs: FastTokenizer, ours: FastTokenizer
) -> NDArray[np.float32]:
    """Word vectors (our vocabulary, dim) from `vectors` of another tokenizer's vocabulary.

    A piece that both have keeps its vector. Any other gets the mean of the pieces that the other
    tokenizer makes of it, and zeros where that makes none (Gee et al., EMNLP 2022, "Fast Vocabulary
    Transfer").
    """
    own, known = ours.get_vocab(), theirs.get_vocab()
    words = np.zeros((1 + max(own.values()), vectors.shape[1]), np.float32)
    # WordPiece marks what goes on a word, where other tokenizers mark what begins one.
    texts = [ours.decode([row]).removeprefix("##") for row in own.values()]
    encodings = theirs.encode_batch_fast(texts, add_special_tokens=False)
    for (piece, row), encoding in zip(own.items(), encodings, strict=True):
        rows = [known[piece]] if piece in known else encoding.ids
        if rows:
            words[row] = vectors[rows].mean(axis=0)
    return words


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


def _centred(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Subtract the mean vector and scale to a mean norm of one.

    Pretrained vectors share one large direction, which would make all texts alike.
    """
    centred = vectors - vectors.mean(axis=0)
    return np.asarray(centred / np.linalg.norm(centred, axis=1).mean(), np.float32)

"""Encodes any number of texts, in batches within a token budget."""

from collections.abc import Sequence

import numpy as np

from service.core.encoding.encoder import Encoder
from service.core.encoding.field_tokenizer import AnyTokenizer
from service.core.encoding.tokenizer import length_sorted_chunks, pad
from service.core.types import Float32Rows


def embed_texts(
    tokenizer: AnyTokenizer, encoder: Encoder, texts: Sequence[str], max_batch_tokens: int
) -> Float32Rows:
    """Encode n texts to (n, dim) float32, row i for text i; zeros where a text has no token.

    An encoder call gets at most `max_batch_tokens` padded tokens, unless a single text has more.
    """
    encodings = tokenizer.tokenize(texts)
    rows = np.zeros((len(texts), encoder.dim), np.float32)
    for chunk in length_sorted_chunks([len(each) for each in encodings], max_batch_tokens):
        rows[chunk] = encoder.encode(pad([encodings[place] for place in chunk]))
    return rows

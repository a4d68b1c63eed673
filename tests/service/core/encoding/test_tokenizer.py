from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers

from service.core.encoding.tokenizer import Tokenizer, length_sorted_chunks, pad
from service.errors import ManifestInvalid
from tests.support.tiny_bundle import MAX_TOKENS, SPECIALS, WORDS


@pytest.fixture(scope="module")
def tokenizer(tiny_bundle: Path) -> Tokenizer:
    return Tokenizer(tiny_bundle / "tokenizer.json", MAX_TOKENS)


def token(word: str) -> int:
    return len(SPECIALS) + WORDS.index(word)


def test_batch_is_padded_to_its_longest_text(tokenizer: Tokenizer) -> None:
    batch = pad(tokenizer.tokenize(["whale", "sea ship island"]))
    assert batch.ids.tolist() == [
        [2, token("whale"), 0, 0],
        [2, token("sea"), token("ship"), token("island")],
    ]
    assert batch.mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.n_tokens == 6


def test_texts_of_one_length_need_no_padding(tokenizer: Tokenizer) -> None:
    batch = pad(tokenizer.tokenize(["whale", "sea"]))
    assert batch.ids.tolist() == [[2, token("whale")], [2, token("sea")]]
    assert batch.mask.tolist() == [[1, 1], [1, 1]]
    assert batch.ids.dtype == batch.mask.dtype == np.int64


def test_no_text_comes_out_empty(tokenizer: Tokenizer) -> None:
    batch = pad(tokenizer.tokenize(["", " \n"]))
    assert batch.ids.tolist() == [[2], [2]]


def test_padding_no_texts_gives_no_rows() -> None:
    assert pad([]).ids.shape[0] == 0


def test_long_text_is_cut_at_its_end_and_flagged(tokenizer: Tokenizer) -> None:
    fits = "whale " * (MAX_TOKENS - 1)
    batch = pad(tokenizer.tokenize([fits, fits + "sea", "moon"]))
    assert batch.ids.shape == (3, MAX_TOKENS)
    assert batch.truncated.tolist() == [False, True, False]
    assert token("sea") not in batch.ids


def test_text_is_normalised_before_it_is_split(tokenizer: Tokenizer) -> None:
    first, second = tokenizer.tokenize(["Whale\u200bSEA", "whale sea"])
    assert first.ids == second.ids


def test_a_limit_that_leaves_room_for_special_tokens_only_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(ManifestInvalid, match="no text would leave a token"):
        Tokenizer(tiny_bundle / "tokenizer.json", 1)


def test_a_prefix_is_read_before_each_text_and_is_no_token_of_it(tokenizer: Tokenizer) -> None:
    prefixed = tokenizer.with_prefix("sea: ")
    [alone], [after] = tokenizer.tokenize(["ship"]), prefixed.tokenize([" SHIP "])
    assert after.ids == [*tokenizer.tokenize(["sea:"])[0].ids, *alone.ids[1:]]
    assert prefixed.without_tokens(["ship", "", "\u200b", "sea"]) == [1, 2]
    assert tokenizer.tokenize(["ship"])[0].ids == alone.ids


def test_a_text_of_one_letter_is_none_without_tokens(tmp_path: Path) -> None:
    """Where a blank begins a word, the blank that ends the prefix becomes part of the text."""
    pieces = [("<unk>", 0.0), ("▁query", -1.0), (":", -1.0), ("▁", -2.0), ("▁x", -1.0)]
    fast = FastTokenizer(models.Unigram(pieces, unk_id=0))
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", 8, "query: ")
    lengths = [len(encoding) for encoding in tokenizer.tokenize(["x", ""])]
    assert lengths == [3, 3]
    assert tokenizer.without_tokens(["x", ""]) == [1]


def test_a_prefix_that_leaves_no_room_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ManifestInvalid, match=r"the prefix 'sea sea .*no text would leave a token"):
        tokenizer.with_prefix("sea " * MAX_TOKENS)


def test_unreadable_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(ManifestInvalid, match=r"tokenizer\.json"):
        Tokenizer(path, 8)


@given(st.lists(st.integers(0, 64), max_size=40), st.integers(1, 256))
def test_chunks_hold_each_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    chunks = list(length_sorted_chunks(lengths, budget))
    filled = [i for i, length in enumerate(lengths) if length]
    assert sorted(i for chunk in chunks for i in chunk) == filled
    for chunk in chunks:
        longest = max(lengths[i] for i in chunk)
        assert len(chunk) == 1 or len(chunk) * longest <= budget

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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

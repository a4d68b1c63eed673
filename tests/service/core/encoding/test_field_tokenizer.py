"""Texts with several fields: each is cut by itself, and every token says whose it is."""

from pathlib import Path

import pytest

from service.core.encoding.field_tokenizer import FieldTokenizer, open_tokenizer
from service.core.encoding.text import join_fields
from service.core.encoding.tokenizer import Tokenizer, pad
from service.errors import ManifestInvalid
from tests.support.tiny_bundle import SPECIALS, WORDS

START = 2  # the one special token of the tiny bundle's tokenizer


@pytest.fixture(scope="module")
def path(tiny_bundle: Path) -> Path:
    return tiny_bundle / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> FieldTokenizer:
    opened = open_tokenizer(path, [3, 4])
    assert isinstance(opened, FieldTokenizer)
    return opened


def token(word: str) -> int:
    return len(SPECIALS) + WORDS.index(word)


def test_each_token_is_marked_with_its_field(tokenizer: FieldTokenizer) -> None:
    [both] = tokenizer.tokenize([join_fields(["Whale", "sea ship"])])
    assert both.ids == [START, token("whale"), START, token("sea"), token("ship")]
    assert both.marks == [1, 1, 2, 2, 2]
    assert not both.overflowing


def test_a_long_field_is_cut_and_leaves_the_other_whole(tokenizer: FieldTokenizer) -> None:
    long = join_fields(["whale ship", "sea " * 50])
    batch = pad(tokenizer.tokenize([long, "whale", join_fields(["", "moon"])]))
    sea = [token("sea")] * 3
    assert batch.ids[0].tolist() == [START, token("whale"), token("ship"), START, *sea]
    assert batch.mask.tolist() == [
        [1, 1, 1, 2, 2, 2, 2],
        [1, 1, 0, 0, 0, 0, 0],
        [2, 2, 0, 0, 0, 0, 0],
    ]
    assert batch.truncated.tolist() == [True, False, False]
    assert batch.n_tokens == 11
    assert tokenizer.max_tokens == 7


def test_only_a_text_without_a_token_in_any_field_leaves_none(tokenizer: FieldTokenizer) -> None:
    blank = ["", join_fields(["\u200b", " "]), join_fields([" ", "\u2028"])]
    given = ["sea", join_fields(["", "sea"]), join_fields(["sea", "\u200b"])]
    assert tokenizer.without_tokens([*blank, *given]) == [0, 1, 2]
    for text in (*blank, *given):
        [tokens] = tokenizer.tokenize([text])
        assert tokenizer.leaves_no_token(text, len(tokens)) is (text in blank)


def test_a_prefix_comes_before_each_field(tokenizer: FieldTokenizer) -> None:
    [tokens] = tokenizer.with_prefix("moon ").tokenize([join_fields(["sea", "ship"])])
    assert tokens.ids == [START, token("moon"), token("sea"), START, token("moon"), token("ship")]
    with pytest.raises(ManifestInvalid, match="no text would leave a token"):
        tokenizer.with_prefix("moon moon ")


def test_texts_of_one_field_need_no_marks(path: Path) -> None:
    assert isinstance(open_tokenizer(path, [8]), Tokenizer)

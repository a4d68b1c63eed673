"""Tokenized texts: batches, orders and parts give back the very texts that went in."""

from dataclasses import replace

import numpy as np
import pytest

from models.data import tokens
from models.data.tokens import TokenizedTexts, concatenate, tokenize_texts
from service.core.encoding.field_tokenizer import open_tokenizer
from service.core.encoding.text import join_fields
from service.core.encoding.tokenizer import Tokenizer

ROWS = [[5, 6, 7], [], [8], [9, 10], [11, 12, 13, 14]]


def flat(rows, pooled=None):
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return TokenizedTexts(
        np.array([token for row in rows for token in row], np.int32), offsets, 1, pooled
    )


def unflat(texts):
    return [
        texts.ids[start:stop].tolist()
        for start, stop in zip(texts.offsets, texts.offsets[1:], strict=False)
    ]


@pytest.fixture
def texts():
    return flat(ROWS, np.arange(10, dtype=np.float16).reshape(5, 2))


def test_a_batch_is_padded_with_zeros_to_its_longest(texts):
    batch = texts.batch(np.array([4, 1, 3]))
    assert batch.ids.tolist() == [[11, 12, 13, 14], [0, 0, 0, 0], [9, 10, 0, 0]]
    assert batch.mask.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]]


def test_taking_rows_keeps_their_order_and_their_pooled_rows(texts):
    taken = texts.take(np.array([3, 0, 3]))
    assert unflat(taken) == [ROWS[3], ROWS[0], ROWS[3]]
    assert taken.pooled.tolist() == [[6, 7], [0, 1], [6, 7]]


def test_a_part_is_its_rows_and_all_of_them_cost_nothing(texts):
    assert unflat(texts.slice(slice(1, 4))) == ROWS[1:4]
    assert len(texts.slice(slice(2, 2))) == 0
    assert texts.slice(slice(0, 5)) is texts


def test_putting_together_keeps_order_and_pooled_rows_where_both_have_them(texts):
    both = concatenate(texts, texts.take(np.array([2])))
    assert unflat(both) == [*ROWS, ROWS[2]]
    assert both.pooled.tolist()[-1] == [4, 5]
    assert both.n_truncated == 2
    assert concatenate(texts, flat([[1]])).pooled is None


def test_marks_of_fields_come_along_in_batches_parts_and_sums(texts):
    marked = replace(texts, marks=np.array([1, 1, 2, 1, 1, 2, 1, 2, 2, 2], np.int8))
    assert marked.batch(np.array([3, 0])).mask.tolist() == [[1, 2, 0], [1, 1, 2]]
    assert marked.take(np.array([3, 2])).marks.tolist() == [1, 2, 1]
    assert concatenate(marked, marked.take(np.array([2]))).marks.tolist() == [*marked.marks, 1]
    assert concatenate(marked, texts).marks is None


def test_texts_of_several_fields_are_tokenised_with_their_marks(tiny_bundle):
    tokenizer = open_tokenizer(tiny_bundle / "tokenizer.json", [4, 8])
    texts = tokenize_texts(tokenizer, [join_fields(["sea", "whale ship"]), "moon"])
    assert texts.marks.tolist() == [1, 1, 2, 2, 2, 1, 1]
    assert tokenize_texts(tokenizer, []).marks.tolist() == []


@pytest.mark.parametrize("tokens", [1, 4, 6, 1000])
def test_batches_by_length_hold_every_row_once_within_the_budget(texts, tokens):
    batches = texts.batches_by_length(tokens)
    assert sorted(np.concatenate(batches).tolist()) == [0, 1, 2, 3, 4]
    for picked in batches:
        longest = max(len(ROWS[row]) for row in picked)
        assert len(picked) == 1 or len(picked) * longest <= tokens


def test_no_texts_make_no_batches():
    assert flat([]).batches_by_length(8) == []
    assert flat([[], []]).batches_by_length(8)[0].tolist() == [0, 1]


def test_texts_are_split_as_serving_splits_them_and_cuts_are_counted(bert, monkeypatch):
    monkeypatch.setattr(tokens, "_TEXTS_AT_ONCE", 2)
    tokenizer = Tokenizer(bert / "tokenizer.json", 4)
    words = ["a", "", "a b c d e f", "b  a", "g h i j k"]
    texts = tokenize_texts(tokenizer, words)
    assert unflat(texts) == [encoding.ids for encoding in tokenizer.tokenize(words)]
    assert texts.n_truncated == 2
    assert len(unflat(texts)[1]) == 2  # [CLS] and [SEP] alone
    assert len(tokenize_texts(tokenizer, [])) == 0

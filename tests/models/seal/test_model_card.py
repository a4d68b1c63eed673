"""The model card says what a bundle's answers are made of."""

from pathlib import Path

from models.seal.model_card import model_card
from service.bundle.verify import read_manifest
from tests.support.tiny_rerank import write_tiny_reranked_bundle


def test_a_card_says_how_much_a_memory_counts(tiny_memory_bundle: Path, tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_memory_bundle)
    assert manifest.memory is not None
    told = f"{manifest.memory.neighbours} nearest are {100 * manifest.memory.weight:g} % of"
    assert told in model_card(manifest)
    assert "Memory: 40 training queries" in model_card(manifest)
    assert "Memory" not in model_card(read_manifest(tiny_bundle))


def test_a_card_says_how_far_the_first_label_is_off(tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    assert "first label alone" not in model_card(manifest)
    errors = {"first_before": 0.16, "first_after": 0.033}
    measured = manifest.calibration.model_copy(update=errors)
    card = model_card(manifest.model_copy(update={"calibration": measured}))
    assert "Of the first label alone it is 0.1600 before and 0.0330 after." in card


def test_a_card_names_the_prefixes_that_texts_are_read_behind(tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    assert "behind" not in model_card(manifest)
    prefixes = {"query_prefix": "query: ", "label_prefix": "passage: "}
    prefixed = manifest.tokenizer.model_copy(update=prefixes)
    card = model_card(manifest.model_copy(update={"tokenizer": prefixed}))
    assert "Queries are read behind 'query: ', labels behind 'passage: '." in card


def test_a_card_says_which_efforts_trees_reorder_and_what_for(tmp_path: Path) -> None:
    manifest = read_manifest(write_tiny_reranked_bundle(tmp_path / "bundle"))
    card = model_card(manifest)
    assert "trees re-order the first labels at balanced" in card
    assert "training queries, which the second stage reads" in card
    assert manifest.rerank is not None
    params = {"p_at_1_before": 30.1, "p_at_1": 33.2, "p_at_5_before": 14.3, "p_at_5": 15.4}
    told = manifest.rerank.model_copy(update={"params": params})
    card = model_card(manifest.model_copy(update={"rerank": told}))
    assert "move P@1 from 30.1 to 33.2 and P@5 from 14.3 to 15.4" in card

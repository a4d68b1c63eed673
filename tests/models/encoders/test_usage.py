"""What a folder of sentence-transformers says about its model becomes the configuration."""

import json

import pytest

from models.config import EncoderConfig
from models.encoders.usage import resolve_encoder
from models.errors import SourceError

STEPS = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {
        "idx": 2,
        "name": "2",
        "path": "2_Normalize",
        "type": "sentence_transformers.models.Normalize",
    },
]
E5 = {"query": "query: ", "passage": "passage: "}


@pytest.fixture
def folder(tmp_path):
    """A source that holds its weights alone."""
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("")
    return tmp_path


def write(folder, steps=STEPS, pooling=None, about=None):
    (folder / "modules.json").write_text(json.dumps(steps))
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if about is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(about))


def resolved(folder, **given):
    config = resolve_encoder(
        EncoderConfig(**{"kind": "transformer", "source": str(folder)} | given)
    )
    return config.pooling, config.query_prefix, config.label_prefix


def test_a_source_that_says_nothing_pools_the_mean_without_prefixes(folder):
    assert resolved(folder) == ("mean", "", "")


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"embedding_dimension": 384, "pooling_mode": "cls", "include_prompt": True}, "cls"),
        ({"embedding_dimension": 384, "pooling_mode": "mean"}, "mean"),
    ],
)
def test_pooling_is_read_in_the_old_and_in_the_new_form(folder, pooling, expected):
    write(folder, pooling=pooling)
    assert resolved(folder)[0] == expected


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"prompts": E5}, ("query: ", "passage: ")),
        ({"prompts": E5 | {"document": "text: "}}, ("query: ", "text: ")),
        ({"prompts": {"query": "Find: "}}, ("Find: ", "")),
        ({"prompts": {"all": "say: "}, "default_prompt_name": "all"}, ("say: ", "say: ")),
        ({"prompts": {}, "default_prompt_name": None}, ("", "")),
        ({"__version__": {"sentence_transformers": "2.0.0"}}, ("", "")),
    ],
)
def test_prompts_become_prefixes_as_the_library_would_choose_them(folder, about, expected):
    write(folder, about=about, steps=[])
    assert resolved(folder)[1:] == expected


def test_a_prompt_that_no_manifest_has_room_for_is_refused(folder):
    write(folder, about={"prompts": {"query": "x" * 1025}})
    with pytest.raises(SourceError, match=r"prompts\.query: String should have at most 1024"):
        resolved(folder)


def test_what_the_configuration_says_wins(folder):
    write(folder, pooling={"pooling_mode": "max"}, about={"prompts": E5})
    given = {"pooling": "cls", "query_prefix": "", "label_prefix": "label: "}
    assert resolved(folder, **given) == ("cls", "", "label: ")


def test_a_bag_alone_has_no_prefixes(folder):
    write(folder, about={"prompts": E5}, pooling={"pooling_mode": "cls"})
    assert resolved(folder, kind="bag") == ("mean", "", "")
    assert resolved("scratch", kind="bag") == ("mean", "", "")


@pytest.mark.parametrize(
    ("pooling", "sentence"),
    [
        ({"pooling_mode": "lasttoken"}, "pools lasttoken, which is not offered"),
        (
            {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
            "pools cls_token and max_tokens, which is not offered",
        ),
        (
            {"pooling_mode_mean_tokens": True, "include_prompt": False},
            "pools mean_tokens without the prompt, which is not offered",
        ),
        ({"pooling_mode_mean_tokens": False}, "pools nothing"),
        ({"pooling_mode": 3}, "pooling_mode: Input should be a valid string"),
    ],
)
def test_a_pooling_that_is_not_offered_is_refused_by_name(folder, pooling, sentence):
    write(folder, pooling=pooling)
    with pytest.raises(SourceError, match=rf"1_Pooling/config\.json:? {sentence}"):
        resolved(folder)


@pytest.mark.parametrize("text", ["[", '{"type": "Pooling"}', '[{"type": "Pooling"}]'])
def test_a_list_of_steps_that_is_none_is_refused_by_name(folder, text):
    (folder / "modules.json").write_text(text)
    with pytest.raises(SourceError, match=r"modules\.json: "):
        resolved(folder)


def test_a_step_that_is_left_out_is_said(folder, caplog):
    write(folder, steps=[*STEPS, {"path": "3_Dense", "type": "sentence_transformers.models.Dense"}])
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    assert resolved(folder)[0] == "mean"
    assert "its step Dense is left out" in caplog.text
    assert "Normalize" not in caplog.text
